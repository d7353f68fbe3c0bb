"""Our own file: one safetensors file of float32 or bf16 tensors under our names, and the model's
description in its metadata.

Metadata (all strings, as safetensors wants it): format "mats_ds", format_version, model: JSON of a
ModelSpec, note, and origin: JSON of an Origin (which step of a training, averaged or not, chosen on
what; how the training took its clips).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.tensor_file import write_tensor_file
from mats_ds.models.model_spec import ModelSpec, dump_spec, parse_spec
from mats_ds.models.weights.file_content import AGAIN, check_header
from mats_ds.models.weights.model_weights import Weights, check_tensors
from mats_ds.models.weights.origin import Origin, parse_origin

FORMAT = "mats_ds"
FORMAT_VERSION = 1
CONVOLUTIONS = ("patch_embed.proj.weight", "patch_embed.projection.weight")


def save_weights(
    path: str | Path, spec: ModelSpec, state: Mapping[str, torch.Tensor], *, note: str = "", origin: Origin | None = None
) -> Path:
    """Write the file under a temporary name, then rename it. Returns its path. `note`: the source
    of the weights."""
    path = Path(path)
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "model": json.dumps(dump_spec(spec)), "note": note}
    if origin is not None:
        metadata["origin"] = json.dumps(origin.as_json())
    write_tensors(path, state, metadata)
    return path


def write_tensors(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensor_file(path, lambda file: save_file(copy_tensors(state), file, metadata=metadata))


def copy_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: on the host, contiguous, and none in the memory of another."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def is_videomae_file(path: str | Path) -> bool:
    """Whether a safetensors file is of another program and holds a model with VideoMAE's patch
    embedding, a Conv3d."""
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                return False
            names = [name for name in file.keys() if name.endswith(CONVOLUTIONS)]  # noqa: SIM118 (it is no dictionary)
            return any(len(file.get_slice(name).get_shape()) == 5 for name in names)
    except (SafetensorError, ValueError):
        return False


def load_weights(path: str | Path) -> Weights:
    """Read the file. Raises ValueError for a file that is torn, of another program, or of a newer
    version."""
    path = Path(path)
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is a safetensors file of another program: it has no description of its model; "
                    "give one of ours, a .pth, or the Hugging Face folder that it lies in"
                )
            if int(metadata.get("format_version", FORMAT_VERSION)) > FORMAT_VERSION:
                version = metadata["format_version"]
                raise ValueError(
                    f"{path} was written by a newer version (format {version}, this one reads {FORMAT_VERSION}): update mats_ds"
                )
            spec = parse_spec(parse_json(metadata["model"]))
            origin = parse_origin(parse_json(metadata.get("origin", "{}")))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read, it may be torn ({error}): {AGAIN}") from None
    check_tensors(state)
    described = origin.describe()
    source = "a weight file of mats_ds" + (f": {described}" if described else "")
    return Weights(spec, state, source, (metadata["note"],) if metadata.get("note") else (), origin)
