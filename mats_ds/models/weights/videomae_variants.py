"""Convert checkpoints of VideoMAE's variants: tensors under other names -> VideoMAE's own names,
with the same outputs.

    variant = convert_variant(content, path)  # VideoMAE V2, MGMAE, InternVideo, ...

In this order: the dictionary of weights is located (under `model`, `state_dict`, ...), prefixes of
all names are removed (`module.`, `model.`, `vision_encoder.`, ...), names of other code become
VideoMAE's, and layers that VideoMAE does not have are folded into those that it has where that
changes no output:
- `qkv.bias`: its parts for q and v are `q_bias` and `v_bias`. That for k adds q . b_k to all scores
  of a query, which cancels in the softmax, and is dropped;
- layer scale (`gamma_1`, `gamma_2`): multiplied into the layer before it;
- a saved `pos_embed` that is the sine-cosine table: dropped, the model computes it.
Anything else is refused by name, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mats_ds.core.format import format_count
from mats_ds.models.layers import sine_cosine_positions
from mats_ds.models.weights.model_weights import MAX_NAME_CHARACTERS, MAX_TENSORS, check_tensors, list_names

# The keys of weights in a checkpoint, the likeliest first. DeepSpeed uses module, Lightning and
# mmaction2 state_dict.
STATE_KEYS = (
    *("model", "module", "state_dict", "model_state_dict", "model_state", "net", "network", "weights"),
    *("model_ema", "ema", "state_dict_ema", "target_encoder", "teacher", "student", "encoder", "backbone"),
)
MAX_NESTING = 4
# torch.compile, DataParallel, Lightning, detection code: removed from every name.
WRAPPERS = ("_orig_mod.", "module.", "model.", "backbone.")
HEADS = ("cls_head.", "head.", "fc_norm.")  # may lie next to the encoder
PATCHES = re.compile(r"(?P<base>.*?)patch_embed\.(proj|projection)\.weight")
# of two encoders, the one that their authors evaluate
PREFERRED = ("teacher", "target", "ema", "momentum")
RENAMED = (  # names of other code -> VideoMAE's
    (r"patch_embed\.projection\.", "patch_embed.proj."),  # mmaction2
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),  # mmaction2
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),  # mmaction2
    (r"^cls_head\.fc_cls\.", "head."),  # mmaction2
    (r"\.ls([12])\.gamma$", r".gamma_\1"),  # timm
)
LEFT_OUT = (  # tensors that the encoder's and the decoder's outputs do not depend on
    (r".*total_(ops|params)", "counters of a FLOP profiler"),
    (r"(.*\.)?clip_decoder\..*", "heads that predict CLIP's features (Unmasked Teacher)"),
    (r"(.*\.)?(get_token_probs|pos_embed_probs).*", "the network that chooses masks (AdaMAE)"),
)
REFUSED = (  # parts that ours does not have
    (r"(.*\.)?(cls_token|class_token|cls_positional_embedding|pos_embed_class)", "a class token that all others attend to"),
    (r"(.*\.)?pos_embed_(spatial|temporal)|(.*\.)?(temporal_embed\w*|time_embed)", "learned positions of space and time apart"),
    (r".*(relative_position|rel_pos).*", "relative position biases in attention"),
    (r".*\.attn\.(q_norm|k_norm)\..*", "normalised queries and keys"),
    (r".*\.mlp\.(w12|w3|w1|w2|fc1_g|fc1_x)\..*", "a gated MLP (SwiGLU)"),
    (r".*(attn_pool|attentive_pooler|clip_projector|cross_attn).*", "attention pooling or cross-attention"),
    (r".*\.temporal_(attn|norm1|fc)\..*", "attention over space and time apart"),
)
TABLE_TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # their spacing near 1, doubled
DEFAULT_TOLERANCE = 1e-5


@dataclass
class Converted:
    """`tensors` under VideoMAE's names. `num_positions`: rows of a saved table of the encoder's
    positions, None without one."""

    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    num_positions: int | None = None


def convert_variant(content: Mapping[str, Any], path: str | Path) -> Converted:
    """Raises ValueError for a dictionary without a video model, and for one with parts that ours
    cannot be."""
    notes: list[str] = []
    state = unwrap(find_state(content, notes))
    variant = Converted({name: value for name, value in state.items() if isinstance(value, torch.Tensor)}, notes)
    _choose_encoder(variant, path)
    for pattern, replacement in RENAMED:
        variant.tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in variant.tensors.items()}
    for pattern, reason in LEFT_OUT:
        names = [name for name in variant.tensors if re.fullmatch(pattern, name)]
        if names:
            variant.notes.append(f"{format_count(len(names), 'tensor')} left out: {reason}")
        for name in names:
            del variant.tensors[name]
    _refuse(variant.tensors, path)
    check_tensors(variant.tensors)
    _join_projections(variant.tensors)
    _split_biases(variant)
    _fold_layer_scale(variant)
    _drop_positions(variant, path)
    return variant


def find_state(content: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """The dictionary that holds the tensors; which of several was taken is noted."""
    for _ in range(MAX_NESTING):
        keys = [key for key in STATE_KEYS if holds_tensors(content.get(key))]
        if not keys or any(isinstance(value, torch.Tensor) for value in content.values()):
            break
        if len(keys) > 1:
            notes.append(f"the weights under {keys[0]!r} are read; there are others under {', '.join(map(repr, keys[1:]))}")
        content = content[keys[0]]
    return content


def holds_tensors(value: Any) -> bool:
    """Whether a dictionary holds tensors, or one that does; under `model` may also lie what a model
    is made of.

    Each dictionary is searched once: a small file can hold dictionaries that contain each other a
    million times.
    """
    level, seen = [value], set()
    for _ in range(MAX_NESTING):
        level = [value for value in level if isinstance(value, Mapping) and id(value) not in seen and not seen.add(id(value))]
        items = [item for mapping in level for item in mapping.values()]
        if any(isinstance(item, torch.Tensor) for item in items):
            return True
        level = items
    return False


def unwrap(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without WRAPPERS."""
    if len(state) > MAX_TENSORS:
        raise ValueError(f"a dictionary of weights has {MAX_TENSORS:,} names at most, got {len(state):,}")
    stripped = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"a dictionary of weights has names, got a key that is a {type(name).__name__}")
        if len(name) > MAX_NAME_CHARACTERS:
            raise ValueError(
                f"a weight has a name of {MAX_NAME_CHARACTERS:,} characters at most, got {len(name):,}: {name[:60]!r}"
            )
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        stripped[name] = value
    return stripped


def _choose_encoder(variant: Converted, path: str | Path) -> None:
    """Keep the tensors of one video model, without what its names have in common."""
    bases = {match["base"] for name in variant.tensors if (match := PATCHES.fullmatch(name))}
    # VideoMAE's own pre-training has encoder.patch_embed heads decoder.blocks
    bases = {base.removesuffix("encoder.") if base == "encoder." or base.endswith(".encoder.") else base for base in bases}
    if not bases or "" in bases:
        return
    chosen = min(bases, key=lambda base: (not any(word in base for word in PREFERRED), len(base), base))
    kept = {name.removeprefix(chosen): tensor for name, tensor in variant.tensors.items() if name.startswith(chosen)}
    heads = {name: tensor for name, tensor in variant.tensors.items() if name.startswith(HEADS)}
    others = {name.partition(".")[0] for name in variant.tensors if not name.startswith((chosen, *HEADS))}
    if others:
        variant.notes.append(f"the model under {chosen!r} is read; left out: {list_names(sorted(others))}")
    variant.tensors = {**heads, **unwrap(kept)}


def _refuse(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    problems = []
    for pattern, reason in REFUSED:
        names = [name for name in tensors if re.fullmatch(pattern, name)]
        if names:
            problems.append(f"{reason} ({format_count(len(names), 'tensor')}: {names[0]}{', ...' if len(names) > 1 else ''})")
    norms = [name for name in tensors if name.endswith(".norm1.weight") and name.replace("weight", "bias") not in tensors]
    if norms:
        problems.append(f"norms without a bias, such as RMSNorm ({norms[0]})")
    if problems:
        raise ValueError(f"{path} is of a model that ours cannot be: it has {'; '.join(problems)}")


def _join_projections(tensors: dict[str, torch.Tensor]) -> None:
    """attn.q, attn.k and attn.v -> attn.qkv (the video MAE of arXiv 2205.09113 keeps them
    apart)."""
    for leaf in ("weight", "bias"):
        for name in [name for name in tensors if name.endswith(f".attn.q.{leaf}")]:
            stem = name.removesuffix(f"q.{leaf}")
            parts = [tensors.pop(f"{stem}{part}.{leaf}") for part in "qkv" if f"{stem}{part}.{leaf}" in tensors]
            tensors[f"{stem}qkv.{leaf}"] = torch.cat(parts)


def _split_biases(variant: Converted) -> None:
    """attn.qkv.bias -> attn.q_bias and attn.v_bias; attention without any bias has biases of
    zero."""
    num_keys = 0
    for name in [name for name in variant.tensors if name.endswith(".attn.qkv.bias")]:
        bias = variant.tensors.pop(name)
        stem = name.removesuffix("qkv.bias")
        weight = variant.tensors.get(f"{stem}qkv.weight")
        if bias.ndim != 1 or len(bias) % 3 or weight is None or len(weight) != len(bias):
            # no such layer: refused with the names that VideoMAE does not have
            variant.tensors[name] = bias
            continue
        variant.tensors[f"{stem}q_bias"], key_bias, variant.tensors[f"{stem}v_bias"] = bias.chunk(3)
        num_keys += bool(key_bias.count_nonzero())
    num_keys += _drop_all(variant.tensors, ".attn.k_bias")
    if num_keys:
        variant.notes.append(f"biases of keys are left out in {format_count(num_keys, 'block')}: they cancel in the softmax")
    weights = [name for name in variant.tensors if name.endswith(".attn.qkv.weight") and variant.tensors[name].ndim == 2]
    if weights and not any(name.endswith((".attn.q_bias", ".attn.v_bias", ".attn.qkv.bias")) for name in variant.tensors):
        variant.notes.append("its attention has no biases: zeros are used")
        for name in weights:
            width = variant.tensors[name].shape[1]
            for leaf in ("q_bias", "v_bias"):
                variant.tensors[name.replace("qkv.weight", leaf)] = variant.tensors[name].new_zeros(width)


def _drop_all(tensors: dict[str, torch.Tensor], ending: str) -> int:
    names = [name for name in tensors if name.endswith(ending)]
    for name in names:
        del tensors[name]
    return len(names)


def _fold_layer_scale(variant: Converted) -> None:
    """x + gamma * (W y + b) is x + (gamma W) y + gamma b."""
    for number, layer in ((1, "attn.proj"), (2, "mlp.fc2")):
        for name in [name for name in variant.tensors if name.endswith(f".gamma_{number}")]:
            stem = name.removesuffix(f"gamma_{number}") + layer
            gamma_D, weight, bias = (variant.tensors.get(key) for key in (name, f"{stem}.weight", f"{stem}.bias"))
            if weight is None or bias is None or bias.ndim != 1 or not gamma_D.shape == bias.shape == weight.shape[:-1]:
                continue  # stays, and is refused with the names that VideoMAE does not have
            del variant.tensors[name]
            variant.tensors[f"{stem}.weight"] = gamma_D.float()[:, None] * weight.float()
            variant.tensors[f"{stem}.bias"] = gamma_D.float() * bias.float()


def _drop_positions(variant: Converted, path: str | Path) -> None:
    """Drop saved tables that are what the model computes. Raises ValueError for others."""
    for name in [name for name in variant.tensors if re.fullmatch(r"((encoder|decoder)[._])?pos_embed", name)]:
        saved = variant.tensors.pop(name)
        table_ND = saved.reshape(-1, saved.shape[-1]) if saved.ndim > 1 else saved[None]
        if table_ND.numel() == 0:
            raise ValueError(f"{path}: {name} {list(saved.shape)} is no table of positions")
        difference = float((table_ND.float() - sine_cosine_positions(*table_ND.shape)).abs().max())
        if not difference <= TABLE_TOLERANCE.get(saved.dtype, DEFAULT_TOLERANCE):
            raise ValueError(
                f"{path} has positions of its own, {name} {list(saved.shape)}: they differ from VideoMAE's sine-cosine table by "
                f"up to {difference:.3g} (learned, or of another formula), and ours cannot hold them"
            )
        if not name.startswith("decoder"):
            variant.num_positions = len(table_ND)
