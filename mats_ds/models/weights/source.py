"""What a path of weights leads to, by its names alone: a run, a Hugging Face folder, a file, or
nothing that holds weights. Torch is not needed to know it, so a wrong path is answered at once."""

from __future__ import annotations

from pathlib import Path

from mats_ds.core.checkpoint_files import CHECKPOINTS, is_checkpoint, list_checkpoints
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.models.weights.origin import BEST_FILE

CONFIG = "config.json"  # makes a folder a Hugging Face model
SUFFIX = ".safetensors"  # of a file of ours
SOURCES = "give a run folder, a .safetensors or .pth, or a Hugging Face folder"


def check_source(path: str | Path) -> None:
    """Raises ValueError where the path leads to no weights, as far as names and first bytes
    tell."""
    if describe_file(path) in ("a video", "an image", "a table (CSV)", "a recipe (YAML)"):
        raise ValueError(f"{not_a('file of weights', path)}: {SOURCES}")
    identify_folder(path)


def identify_folder(path: str | Path) -> str | None:
    """ "hf" or "run" for a folder, None for a file. Raises ValueError for a folder that is neither,
    and where nothing is."""
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "hf"
        if find_steps(path) or (path / BEST_FILE).is_file():
            return "run"
        raise ValueError(
            f"{path} is neither a Hugging Face folder (no {CONFIG}) nor a run (no finished checkpoint): give one that is"
        )
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}: {SOURCES}")
    return None


def find_steps(path: str | Path) -> list[Path]:
    """The finished checkpoints of a run folder, of its `checkpoints` folder, or the one that `path`
    itself is; newest first."""
    path = Path(path)
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    steps = [step for step in list_checkpoints(folder) if is_checkpoint(step)]
    return steps or ([path] if is_checkpoint(path) else [])
