"""The model card, README.md of a Hugging Face folder: what the model is, costs, was measured and
trained with.

Only what the run's own files say; a person adds what they cannot: licence, data, limits of use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mats_ds.core.events import RunInfo
from mats_ds.core.format import format_count, format_figure
from mats_ds.core.run_dir import RUN_FILE, read_run
from mats_ds.core.storage.files import read_text, refuse_wrong_kind
from mats_ds.core.text import clean_line
from mats_ds.exporting.hub.measured import Measured
from mats_ds.models.weights.origin import Origin

if TYPE_CHECKING:  # it needs torch, and to know a card does not
    from mats_ds.models.model_spec import ModelSpec

CARD = "README.md"
MARK = "# written by mats convert --to hub"  # a comment of the metadata: this file may be replaced
UNKNOWN_LICENSE = "other"
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")  # as the Hub writes its identifiers
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # as a run records its start
MAX_CARD_BYTES = 1_000_000
METHOD = "[arXiv 2211.10636](https://arxiv.org/abs/2211.10636)"
SHOWN_CLASSES = 10


@dataclass(frozen=True)
class CardFacts:
    """What a card says of one model. `costs`: GMACs by the fraction of the tokens kept. `run`: None
    where the weights come without their run. `license`: an identifier of the Hub, None where the
    user named none. `data`: the training data in the user's words."""

    spec: ModelSpec
    source_kind: str
    origin: Origin
    costs: Mapping[float, float]
    measured: Measured
    run: RunInfo | None
    license: str | None
    data: str | None


def check_card(folder: Path) -> None:
    """Raises ValueError where the folder holds a card that this command has not written."""
    path = folder / CARD
    refuse_wrong_kind(path)
    if path.exists() and MARK not in read_text(path, max_bytes=MAX_CARD_BYTES)[:1000]:
        raise ValueError(
            f"{path} was not written by this command, which writes a model card of that name: move it away, or give a new folder"
        )


def check_license(license: str | None) -> None:
    """Raises ValueError for what cannot be an identifier of a licence on the Hub."""
    if license is not None and not LICENSE_ID.fullmatch(license):
        raise ValueError(
            f"--license is an identifier of the Hub such as apache-2.0, mit, cc-by-nc-4.0 or other, got {license!r:.80}"
        )


def find_run(source: Path) -> tuple[Path | None, RunInfo | None]:
    """The run folder that weights are of (a run, its `checkpoints`, one of them, or a file in the
    run folder), and its run.json; None where there is none that can be read."""
    for folder in (source, *source.resolve().parents[:2]):
        if (folder / RUN_FILE).is_file():
            try:
                return folder, read_run(folder).info
            except ValueError:
                return folder, None
    return None, None


def write_card(facts: CardFacts) -> str:
    """README.md."""
    spec = facts.spec
    return "\n".join(
        [
            *metadata_lines(facts),
            f"# {title_of(facts)}",
            "",
            *about_lines(facts),
            "",
            "## Use",
            "",
            *use_lines(spec),
            "",
            "## Cost",
            "",
            *cost_lines(facts),
            "",
            "## Measured",
            "",
            *measured_lines(facts),
            "",
            "## Training",
            "",
            *training_lines(facts),
            "",
        ]
    )


def metadata_lines(facts: CardFacts) -> list[str]:
    """The YAML that the Hub reads."""
    is_classifier = facts.spec.kind == "classifier"
    lines = ["---", MARK, "library_name: transformers"]
    lines.append(f"pipeline_tag: {'video-classification' if is_classifier else 'feature-extraction'}")
    lines.append(f"license: {facts.license or UNKNOWN_LICENSE}")
    if facts.license in (None, UNKNOWN_LICENSE):
        lines.append("license_name: not-stated")
    return [*lines, "tags:", "- video", "- videomae", "- token-selection", "- custom_code", "---", ""]


def title_of(facts: CardFacts) -> str:
    size = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}.get(facts.spec.size_name or "", "")
    model = f"ViT-{size}" if size else f"ViT of width {facts.spec.width}"
    purpose = "video classifier" if facts.spec.kind == "classifier" else "video encoder"
    return f"{model} {purpose} with motion-aware token selection"


def about_lines(facts: CardFacts) -> list[str]:
    spec, grid, pruning = facts.spec, facts.spec.grid, facts.spec.pruning
    kept = "all tokens" if pruning.keep_ratio == 1 else f"{100 * pruning.keep_ratio:g}% of the tokens"
    reads = max(spec.num_candidate_frames, grid.num_frames)
    lines = [
        f"A VideoMAE model of width {spec.width}, {format_count(spec.depth, 'block')} and {spec.heads} heads. "
        f"Of the {grid.num_tokens:,} tokens of a clip ({grid.num_frames} frames of {grid.height} x {grid.width}), it encodes "
        f"{kept}: those with the most motion (strategy {pruning.strategy}, {METHOD}).",
    ]
    if reads > grid.num_frames:
        lines[0] += f" It reads {reads} frames and uses the {grid.num_frames} with the most motion."
    if spec.kind == "classifier":
        names = [clean_line(name, max_characters=80) for name in spec.class_names[:SHOWN_CLASSES]]
        more = ", ..." if spec.num_classes > len(names) > 0 else ""
        lines += ["", f"Classes: {spec.num_classes}" + (f" ({', '.join(map(plain, names))}{more})." if names else ".")]
    else:
        lines += ["", "The weights are pre-trained; the decoder of pre-training is in the file for `VideoMAEForPreTraining`."]
        if facts.source_kind == "encoder":
            lines[-1] = "The weights are those of an encoder alone."
    return lines


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", text).replace("&", "&amp;")


def use_lines(spec: ModelSpec) -> list[str]:
    reads = max(spec.num_candidate_frames, spec.grid.num_frames)
    is_classifier = spec.kind == "classifier"
    auto = "AutoModelForVideoClassification" if is_classifier else "AutoModel"
    dense = "VideoMAEForVideoClassification" if is_classifier else "VideoMAEModel"
    then = "logits = model(**inputs).logits" if is_classifier else "features = model(**inputs).pooler_output  # [1, width]"
    # frames are selected by their kept tokens: not where all are kept
    every = ", 1.0 all of them" if spec.num_candidate_frames <= spec.grid.num_frames else ", below 1.0"
    return [
        "```python",
        "import numpy as np",
        f"from transformers import AutoImageProcessor, {auto}",
        "",
        'folder = "."  # of this file, or its name on the Hub',
        "processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)",
        f"model = {auto}.from_pretrained(folder, trust_remote_code=True).eval()",
        f"frames = np.zeros(({reads}, 240, 320, 3), np.uint8)  # RGB frames of a clip, or all of a short video",
        "inputs = processor(frames)",
        then,
        "```",
        "",
        f"`keep_ratio=0.5` as a further argument of `from_pretrained` encodes another fraction of the tokens{every}. "
        f"Without `trust_remote_code`, and as `{dense}`, the folder loads as a plain VideoMAE model that encodes every token.",
        "",
        "The code is three files of this folder; it imports torch, numpy and transformers (tested with 4.57 and 5) alone.",
    ]


def cost_lines(facts: CardFacts) -> list[str]:
    spec = facts.spec
    if not facts.costs:
        return ["The model is of no published size, for which costs have not been counted."]
    rows = ["| tokens kept | GMACs of a clip | of all tokens |", "|---|---|---|"]
    for ratio, giga in facts.costs.items():
        here = " (this model)" if ratio == spec.pruning.keep_ratio else ""
        rows.append(f"| {ratio:g}{here} | {format_figure(giga, 3)} | {100 * giga / facts.costs[1.0]:.0f}% |")
    return [*rows, "", "Multiply-adds of the matrix products in one forward pass, counted by mats_ds' planner; not a speed."]


def measured_lines(facts: CardFacts) -> list[str]:
    if not facts.measured.rows:
        return ["Nothing: no test or probe of these weights was found beside them."]
    rows = ["| what | tokens kept | top-1 | how |", "|---|---|---|---|"]
    return [*rows, *(f"| {' | '.join(map(plain, row))} |" for row in facts.measured.rows), "", "Intervals are Wilson's."]


def training_lines(facts: CardFacts) -> list[str]:
    run = facts.run
    lines = [f"- data: {plain(clean_line(facts.data, max_characters=500))}"] if facts.data else ["- data: not stated"]
    if facts.origin.describe():
        step, average = facts.origin.step, facts.origin.averaged
        chosen = ", chosen as the best of the tests during the training" if facts.origin.chosen_on else ""
        kind = ", the average of the weights over training" if average else ""
        lines.append(f"- weights: step {step:,}{kind}{chosen}" if step is not None else "- weights: of no known step")
    if run is None:
        return [*lines, "- how: not known (the weights came without their run)"]
    hardware = run.device_name if run.device.startswith("cuda") else "CPU"
    return [
        *lines,
        f"- task: {'fine-tuning' if run.task == 'finetune' else 'pre-training'}, recipe "
        f"{plain(clean_line(run.recipe_name, max_characters=100))}",
        f"- steps: {run.total_steps:,} of {format_count(run.global_batch, 'clip')}, peak learning rate {run.learning_rate:.3g}, "
        f"optimizer {plain(clean_line(run.optimizer or 'not recorded', max_characters=60))}, precision {run.precision}",
        f"- hardware: {format_count(run.world_size, 'rank')} on {plain(clean_line(hardware, max_characters=100))}",
        f"- date: {run.started[:10] if DATE.match(run.started) else 'not recorded'}",
        f"- software: {software_of(run.versions)}",
    ]


def software_of(versions: Mapping[str, str]) -> str:
    """mats_ds, torch and DeepSpeed, as the run recorded them."""
    known = [
        f"{name} {clean_line(versions[name], max_characters=40)}"
        for name in ("mats_ds", "torch", "deepspeed")
        if versions.get(name)
    ]
    return plain(", ".join(known)) or "not recorded"
