"""Small checkpoints for tests, whole, torn and of somebody else."""

from __future__ import annotations

import json
from pathlib import Path

from mats_ds.training.checkpoints.checkpoint import seal

WEIGHTS, STATES = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def write_part(part: Path, step: int, *, world_size: int = 2, num_bytes: int = 300) -> Path:
    """A sealed folder as a save leaves it before it gets its name."""
    part.mkdir(parents=True)
    (part / WEIGHTS).write_bytes(bytes([step % 251]) * num_bytes)
    for rank in range(world_size):
        (part / STATES.format(rank)).write_bytes(bytes([step % 249, rank]) * 70)
    seal(part, step=step, world_size=world_size, facts={"zero_stage": 2, "global_batch": 16})
    return part


def write_checkpoint(folder: Path, step: int, **sizes: int) -> Path:
    return write_part(folder / f"step-{step:08d}", step, **sizes)


def tear(checkpoint: Path, how: str = "truncate") -> Path:
    """Break a checkpoint: "truncate", "flip", "remove" one of its files, or "unseal" it."""
    file = checkpoint / STATES.format(1)
    if how == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "flip":
        content = bytearray(file.read_bytes())
        content[9] ^= 1
        file.write_bytes(content)
    elif how == "remove":
        file.unlink()
    else:
        (checkpoint / "complete.json").unlink()
    return checkpoint


def rewrite(checkpoint: Path, **changes: object) -> Path:
    """Other values in complete.json; None leaves one out."""
    content = json.loads((checkpoint / "complete.json").read_text()) | changes
    (checkpoint / "complete.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content_of(path: Path) -> object:
    """What a file, a link or a folder holds, to be compared byte for byte."""
    if path.is_symlink():
        return path.readlink()
    if path.is_dir():
        return {each.name: content_of(each) for each in sorted(path.iterdir())}
    return path.read_bytes() if path.is_file() else "no file"
