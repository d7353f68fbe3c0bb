"""The DeepSpeed JSON: read, judged before anything starts, and made into what
`deepspeed.initialize` is given.

Training and planner read it through the same door. DeepSpeed passes over what it does not know,
takes every value that is not empty for true, and has defaults that change weights (it clips
gradients at 1 where the JSON is silent): so every key is looked up in ds_keys.py, and what the JSON
leaves out is stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mats_ds.config.batch_plan import ACCUMULATION_KEY, MICRO_BATCH_KEY
from mats_ds.config.ds_keys import (
    IGNORED,
    LARGEST_WHOLE,
    RECIPE_KEYS,
    REFUSED,
    REFUSED_OF_PARAMS,
    REFUSED_OF_ZERO,
    TOP,
    Kind,
    Only,
    to_json,
)
from mats_ds.core.storage.documents import parse_strict_json
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.core.storage.files import read_text
from mats_ds.core.storage.package_files import find_file, list_names
from mats_ds.core.terminal import drop_notices
from mats_ds.core.text import did_you_mean, find_nearest

CLIPPING_KEY = "gradient_clipping"
NO_CLIPPING = 0.0  # EVEREST and VideoMAE clip nowhere (METHOD section 5)
# DeepSpeed's defaults that would change weights if another version had others; what it is given
# where the JSON is silent.
STATED = {
    CLIPPING_KEY: NO_CLIPPING,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "gradient_allreduce_op": "mean",
}
# DeepSpeed times every micro-batch, for a line that it prints every steps_per_print steps, and
# waits twice for all of the device's work to do so.
NO_TIMERS = {"timers": {"throughput": {"enabled": False}}}
ADAMS = ("adam", "adamw")
MAX_BYTES = 1_000_000
EXAMPLE = '{"type": "AdamW", "params": {"torch_adam": true, "fused": true}}'


def read_ds_config(path: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON as a dictionary, as it was written. Raises ValueError for a missing file,
    broken JSON, and all that DeepSpeed would refuse, pass over, or take for something else than it
    says; all faults are named at once.
    """
    config = read_judged(path)
    if faults := list(_ask_deepspeed(config)):
        raise ValueError(f"{find_file(path, 'ds_configs', suffix='.json')}: {'; '.join(faults)}")
    return config


def read_judged(path: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON, judged by all that is known without DeepSpeed, whose import takes
    seconds. Raises ValueError as `read_ds_config` does."""
    source, path = path, find_file(path, "ds_configs", suffix=".json")
    if path is None:
        names = list_json_names()
        if Path(source).exists():
            raise ValueError(f"{not_a('DeepSpeed JSON', source)}: give a JSON file or one of {', '.join(names)}")
        hint = did_you_mean(Path(source).stem, names)
        raise ValueError(f"no DeepSpeed JSON at {source}: give a JSON file or one of {', '.join(names)}{hint}")
    kind = describe_file(path)
    if kind not in (None, "a text file", "a JSON file", "an empty file"):
        raise ValueError(f"{not_a('DeepSpeed JSON', path)}: give a JSON file or one of {', '.join(list_json_names())}")
    text = read_text(path, max_bytes=MAX_BYTES, follows_links=True)
    try:
        config = parse_strict_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    for judge in (_find_auto, _judge_keys, _judge_together):
        if faults := list(judge(config)):
            raise ValueError(f"{path}: {'; '.join(faults)}")
    return config


def list_json_names() -> list[str]:
    """The names of the DeepSpeed JSON files that come with the package."""
    return list_names("ds_configs", suffix=".json")


def precision_of(ds_config: Mapping[str, Any]) -> str:
    """bf16 or fp32, as the JSON says. Raises ValueError for fp16, which masked video pre-training
    overflows."""
    if _section(ds_config, "fp16").get("enabled", False):
        raise ValueError('the DeepSpeed JSON enables fp16: use "bf16": {"enabled": true}, or neither for fp32')
    return "bf16" if _section(ds_config, "bf16").get("enabled", False) else "fp32"


def zero_stage_of(ds_config: Mapping[str, Any]) -> int:
    """0 to 3, as the JSON states it."""
    return _section(ds_config, "zero_optimization").get("stage", 0)


def clipping_of(ds_config: Mapping[str, Any]) -> float:
    """The norm that gradients are clipped at, 0 for none."""
    return float(ds_config.get(CLIPPING_KEY, NO_CLIPPING))


def leaves_check_to_guard(ds_config: Mapping[str, Any]) -> bool:
    """Whether a guard in the optimizer's kernel can look at the gradients in DeepSpeed's stead,
    whose check and norm are a dozen operations for each gradient and several waits of the host: in
    a bf16 run of ZeRO-1 or -2 without clipping, with torch's fused AdamW on the device, where the
    JSON does not ask for the check.
    """
    params = _section(_section(ds_config, "optimizer"), "params")
    is_fused = bool(params.get("torch_adam", False) and params.get("fused", False))
    asks = "check_grad_overflow" in _section(ds_config, "bf16")
    on_device = zero_stage_of(ds_config) in (1, 2) and not _offloads(ds_config)
    return precision_of(ds_config) == "bf16" and on_device and is_fused and not asks and not clipping_of(ds_config)


def state_clipping(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON with its clipping written down, as a run records it."""
    return {CLIPPING_KEY: NO_CLIPPING, **ds_config}


def notes_on(ds_config: Mapping[str, Any]) -> list[str]:
    """One line for every key that does something else than a reader of the JSON may expect."""
    notes = []
    if CLIPPING_KEY not in ds_config:
        notes.append(f'the DeepSpeed JSON has no "{CLIPPING_KEY}": gradients are not clipped (DeepSpeed alone would clip at 1)')
    for key, instead in IGNORED.items():
        if key in ds_config:
            notes.append(f'"{key}" in the DeepSpeed JSON is not used: {instead}')
    params = _section(_section(ds_config, "optimizer"), "params")
    for key, instead in RECIPE_KEYS.items():
        if key in params:
            value = to_json(params[key])
            notes.append(f'"{key}": {value} in the DeepSpeed JSON is not used: the recipe\'s {instead} is')
    if str(_section(ds_config, "optimizer").get("type", "")).lower() == "adam":
        notes.append('the DeepSpeed JSON says "Adam": DeepSpeed runs it as AdamW, with weight decay apart from the gradient')
    if "optimizer" in ds_config and not params.get("torch_adam", False):
        name = "DeepSpeedCPUAdam" if _offloads(ds_config) else "FusedAdam"
        notes.append(
            f'without "torch_adam": true in optimizer.params, DeepSpeed compiles {name} at its first use, with a C++ or CUDA '
            "compiler: that takes minutes (130 s and 240 s on two cores)"
        )
    return notes


def hand_over(ds_config: Mapping[str, Any], *, accumulation: int, micro_batch: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: the JSON without comments (keys that begin with _)
    and what the recipe decides, with the batch of this run and every default stated that would
    change weights.
    """
    config = {**STATED, **NO_TIMERS, **_without_comments(ds_config)}
    for key in (*IGNORED, "fp16", "torch_autocast", "train_batch_size"):
        config.pop(key, None)
    if "optimizer" in config:
        params = _section(config["optimizer"], "params")
        kept = {key: value for key, value in params.items() if key not in RECIPE_KEYS}
        config["optimizer"] = {**config["optimizer"], "params": kept}
    return {**config, ACCUMULATION_KEY: accumulation, MICRO_BATCH_KEY: micro_batch}


def _judge_keys(config: Mapping[str, Any]) -> Iterator[str]:
    return _judge_section(config, TOP, REFUSED, "")


def _judge_section(section: Mapping[str, Any], table: Mapping[str, Any], refused: Mapping[str, str], path: str) -> Iterator[str]:
    """The faults of the keys and values of a section, and of those inside it."""
    for key, value in section.items():
        name = f"{path}{key}"
        if key.startswith("_") or (not path and key in IGNORED):
            continue
        if key in refused:
            yield f"{name} is not supported: {refused[key]}"
        elif key not in table:
            known = [*table, *refused, *([] if path else IGNORED)]
            close = find_nearest(key, known)
            yield f"{name!r} is no known key" + (f" (did you mean {close!r}?)" if close else ": leave it out")
        elif isinstance(table[key], Only):
            if not _equals(value, table[key].value):
                yield f"{name} can only be {to_json(table[key].value)}, got {to_json(value)}: {table[key].why}"
        elif isinstance(table[key], Kind):
            if not table[key].accepts(value):
                most = " and below 2^63" if isinstance(value, (int, float)) and value > LARGEST_WHOLE else ""
                yield f"{name} must be {table[key].name}{most}, got {to_json(value)}"
        elif not isinstance(value, dict):
            yield f"{name} must be a JSON object, like {{...}}, got {to_json(value)}"
        else:
            inner = {"zero_optimization": REFUSED_OF_ZERO, "optimizer.params": REFUSED_OF_PARAMS}.get(name, {})
            yield from _judge_section(value, table[key], inner, f"{name}.")


def _equals(value: Any, wanted: Any) -> bool:
    """Equal, where true is not 1 and 1 is 1.0."""
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _find_auto(tree: Any, path: str = "") -> Iterator[str]:
    """The keys whose value is "auto", which only Hugging Face's Trainer fills in."""
    if tree == "auto":
        yield f'{path} is "auto", which only Hugging Face\'s Trainer fills in: write the value, or leave the key out'
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if not str(key).startswith("_"):
            yield from _find_auto(value, f"{path}.{key}" if path else str(key))


def _judge_together(config: Mapping[str, Any]) -> Iterator[str]:
    """The faults of keys that are right alone and exclude each other."""
    yield from _judge_optimizer(config)
    yield from _judge_zero(config)


def _judge_optimizer(config: Mapping[str, Any]) -> Iterator[str]:
    if "optimizer" not in config:
        yield f'there is no "optimizer": add "optimizer": {EXAMPLE}'
        return
    optimizer = config["optimizer"]
    kind, params = optimizer.get("type"), _section(optimizer, "params")
    if not isinstance(kind, str) or kind.lower() not in ADAMS:
        yield f'optimizer.type must be "AdamW" (or "Adam", which DeepSpeed runs as AdamW), got {to_json(kind)}: use {EXAMPLE}'
    native = [key for key in ("fused", "foreach", "amsgrad", "maximize") if key in params]
    if not params.get("torch_adam", False) and {"fused", "foreach", "maximize"} & set(native):
        yield f'optimizer.params has {", ".join(native)}, which goes with "torch_adam": true only'
    if params.get("torch_adam", False) and "bias_correction" in params:
        yield 'optimizer.params has bias_correction, which does not go with "torch_adam": leave it out'
    if params.get("fused", False) and params.get("foreach", False):
        yield "optimizer.params has both fused and foreach: keep one of them"


def _judge_zero(config: Mapping[str, Any]) -> Iterator[str]:
    zero, stage = _section(config, "zero_optimization"), zero_stage_of(config)
    if _section(zero, "offload_param").get("device", "none") != "none" and stage != 3:
        yield f"zero_optimization.offload_param goes with stage 3 only, and the stage is {stage}: leave it out"
    if _offloads(config) and stage == 0:
        yield "zero_optimization.offload_optimizer goes with stages 1 to 3, and the stage is 0: leave it out"
    if stage == 0 and precision_of(config) == "bf16":
        # DeepSpeed's wrapper takes a step with zero gradients first, so that Adam's bias correction
        # is a step ahead: after 12 steps weights were 0.0083 from plain AdamW's, where ZeRO 1 to 3
        # in bf16 were 0.0014 away.
        yield 'zero_optimization.stage 0 in bf16 does not train as AdamW does: use stage 1, 2 or 3, or leave "bf16" out'
    for short in ("prefetch_bucket_size", "param_persistence_threshold"):
        if short in zero and f"stage3_{short}" in zero:
            yield f"zero_optimization has {short} and stage3_{short}, which are the same: keep one of them"


def _ask_deepspeed(config: Mapping[str, Any]) -> Iterator[str]:
    """The complaint of DeepSpeed's own reader about the JSON. It only reads: whatever it raises is
    a fault of the JSON."""
    drop_notices()  # in a notebook nobody else has
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    handed = hand_over(config, accumulation=1, micro_batch=1)
    try:
        DeepSpeedConfig(handed)
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
        yield f"DeepSpeed refuses it: {' '.join(str(error).split())[:400] or type(error).__name__}"


def _offloads(ds_config: Mapping[str, Any]) -> bool:
    return _section(_section(ds_config, "zero_optimization"), "offload_optimizer").get("device", "none") != "none"


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = tree.get(key, {})
    return section if isinstance(section, Mapping) else {}


def _without_comments(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_comments(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if not key.startswith("_")
    }
