"""Checkpoints of our own runs: the weights that DeepSpeed wrote (ZeRO-1 and -2), with the recipe that lies beside them.

Layout, as `training/checkpoint.py` writes it: RUN/checkpoints/step-00001000/{mp_rank_00_model_states.pt, ..., complete.json}. The
weights are those that the model computes with, in the run's precision; the optimizer's float32 copies are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mats_ds.config import Recipe
from mats_ds.interop.pickles import unpickle
from mats_ds.interop.weights import Weights, as_float32, measure
from mats_ds.models.spec import ModelSpec, parse_spec
from mats_ds.parsing import parse_json, parse_yaml

COMPLETE = "complete.json"
PREFIX = "step-"
WEIGHT_FILE = "mp_rank_00_model_states.pt"
SPEC_KEY = "model_spec"  # JSON of a ModelSpec, where the run stored one
CHUNK_BYTES = 1 << 22


def find_steps(path: str | Path) -> list[Path]:
    """The finished checkpoints of a run folder, of its `checkpoints` folder, or the one that `path` itself is; newest first."""
    path = Path(path)
    if (path / COMPLETE).is_file():
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return sorted((step for step in folder.glob(f"{PREFIX}*") if (step / COMPLETE).is_file()), reverse=True)


def read_run(path: str | Path) -> Weights:
    """The weights of the newest whole checkpoint. A torn one is passed over and noted.

    Raises ValueError when there is no whole one, when its recipe is of another version, or when it is of ZeRO-3, which leaves
    no rank with whole weights.
    """
    steps, notes = find_steps(path), []
    for step in steps:
        problem = what_is_wrong(step)
        if problem is None:
            return read_step(step, notes)
        notes.append(f"{step.name} is passed over: {problem}")
    raise ValueError(f"{path} has no whole checkpoint" + "".join(f"\n  - {note}" for note in notes))


def what_is_wrong(step: Path) -> str | None:
    """Why the weights of a checkpoint cannot be read, or None when they are there with the bytes that were written."""
    try:
        files = parse_json((step / COMPLETE).read_text(encoding="utf-8"))["files"]
        stated = {**files[WEIGHT_FILE]} if WEIGHT_FILE in files else None
    except (ValueError, TypeError, KeyError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    file = step / WEIGHT_FILE
    if stated is None:
        return f"it has no {WEIGHT_FILE}: ZeRO-3 keeps weights in parts; merge them with checkpoints/zero_to_fp32.py"
    if not file.is_file() or file.stat().st_size != stated.get("bytes"):
        return f"{WEIGHT_FILE} is missing or torn"
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return None if digest.hexdigest() == stated.get("sha256") else f"{WEIGHT_FILE} does not match its checksum"


def read_step(step: Path, notes: list[str]) -> Weights:
    content = unpickle(step / WEIGHT_FILE)
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["module"].items()}
    if isinstance(content.get(SPEC_KEY), str):
        spec = parse_spec(parse_json(content[SPEC_KEY]))
    else:
        spec = spec_of_recipe(content["recipe"], state, step)
    return Weights(spec, as_float32(state), f"step {content['step']} of one of our runs ({step})", tuple(notes))


def spec_of_recipe(text: str, state: Mapping[str, Any], step: Path) -> ModelSpec:
    """The model that a recipe (YAML) describes, with the sizes that the weights have."""
    try:
        recipe = Recipe.model_validate(parse_yaml(text))
    except ValidationError as error:
        places = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise ValueError(f"the recipe in {step} is of another version: {places}") from None
    sizes, selection = measure(state), recipe.selection
    grid = recipe.clip.grid()
    return ModelSpec(
        grid=grid,
        position_grid=grid,
        strategy=selection.strategy,
        keep_ratio=selection.keep_ratio,
        visible_ratio=selection.keep_ratio if sizes["kind"] == "classifier" else selection.visible_ratio,
        distance=selection.distance,
        feature=selection.feature,
        compensate_camera=selection.compensate_camera,
        run_threshold=selection.run_threshold,
        merge_dropped=selection.merge_dropped and sizes["kind"] == "classifier",
        num_candidate_frames=recipe.candidate_grid().num_frames,
        **sizes,
    )
