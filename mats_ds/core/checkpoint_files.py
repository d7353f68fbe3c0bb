"""The folder of a checkpoint: which names are ours, what complete.json says, and whether every file
is as it was written.

Layout: checkpoints/step-00001000/{DeepSpeed's files, complete.json}, checkpoints/latest (the name
of the newest one). Nothing but a real folder of such a name is a checkpoint: a link, a file,
`step-best` or `step-1` belongs to the user. What complete.json says is believed within bounds, and
only of regular files inside that folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import parse_strict_json
from mats_ds.core.storage.files import hash_stream, open_regular, read_bytes

FORMAT_VERSION = 1
COMPLETE = "complete.json"
LATEST = "latest"
CHECKPOINTS = "checkpoints"  # the folder of them in a run folder
STEP_NAME = re.compile(r"step-([0-9]{8})")
MAX_STEP = 99_999_999  # eight digits
MAX_RANKS = 1_000_000  # more than any machine has
MAX_FILE_BYTES = 1 << 50
MAX_COMPLETE_BYTES = 8_000_000  # 150 bytes a file, two files a rank: of twenty thousand ranks
SHA256 = re.compile(r"[0-9a-f]{64}")
HASH_THREADS = 8
SHOWN = 80
# DeepSpeed's names, in 0.19: _get_ckpt_name and _get_rank_zero_ckpt_name of its engine.
WEIGHT_FILE = "mp_rank_00_model_states.pt"  # under ZeRO-1 and -2, all weights
SPEC_KEY = "model_spec"  # in that file: JSON of a ModelSpec
AVERAGE_KEY = "ema"  # in that file: the running average of the weights, where the run keeps one
MODEL_FILE = re.compile(r"(?:zero_pp_rank_(?P<rank>[0-9]+)_)?mp_rank_[0-9]{2}_model_states\.pt")
OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(?P<rank>[0-9]+)_mp_rank_[0-9]{2}_optim_states\.pt")


@dataclass(frozen=True)
class FileSum:
    """Size and SHA-256 of one file of a checkpoint; `name` is relative to the checkpoint's
    folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Complete:
    """The content of complete.json. `zero_stage` and `global_batch` are None in those of version
    0.1."""

    step: int
    world_size: int
    files: Mapping[str, FileSum]
    zero_stage: int | None = None
    global_batch: int | None = None


@dataclass(frozen=True)
class Verdict:
    """`problem`: why a checkpoint cannot be trusted, None where it can. `is_certain`: it is broken,
    and not just unreadable here (by this version, for want of a permission) or renamed. `complete`:
    what it says of itself, None where that cannot be read."""

    problem: str | None
    is_certain: bool = True
    complete: Complete | None = None


class NewerFormat(ValueError):
    """complete.json was written by a newer version of this program."""


class OtherStep(ValueError):
    """A folder has the name of another step than the one that complete.json holds: it was copied or
    renamed."""


def name_of_step(step: int) -> str:
    """The name of the checkpoint of a step."""
    assert 0 <= step <= MAX_STEP, step
    return f"step-{step:08d}"


def step_of_name(name: str) -> int | None:
    """The step that a checkpoint's name says; None for any other name."""
    match = STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, complete or not, newest first: ordered by number, whatever the
    clock said."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if step_of_name(entry.name) is not None and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names, reverse=True)]


def name_lookalikes(folder: Path) -> list[str]:
    """Names that look like a checkpoint's and are none: copies of another name, links, files."""
    ours = {path.name for path in list_checkpoints(folder)}
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith("step-") and name not in ours)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_checkpoint(path: Path) -> bool:
    """Whether a folder, whatever its name, has the file that marks a finished checkpoint."""
    return (path / COMPLETE).is_file()


def read_complete(checkpoint: Path) -> Complete:
    """complete.json of a checkpoint, every value checked. A folder of our name holds the step that
    it is named after.

    Raises FileNotFoundError, NewerFormat, OtherStep and ValueError.
    """
    content = parse_strict_json(read_bytes(checkpoint / COMPLETE, max_bytes=MAX_COMPLETE_BYTES))
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError('expected an object with "files"')
    if _number(content, "format_version", 1, MAX_RANKS) > FORMAT_VERSION:
        raise NewerFormat(
            f"it was written by a newer version (format {content['format_version']}, this one reads {FORMAT_VERSION})"
        )
    step, named = _number(content, "step", 0, MAX_STEP), step_of_name(checkpoint.name)
    if named is not None and step != named:
        raise OtherStep(f"it holds step {step:,}: call it {name_of_step(step)} if you want to go on from it")
    complete = Complete(
        step=step,
        world_size=_number(content, "world_size", 1, MAX_RANKS),
        files={name: _file_sum(name, stated) for name, stated in content["files"].items()},
        zero_stage=None if content.get("zero_stage") is None else _number(content, "zero_stage", 0, 3),
        global_batch=None if content.get("global_batch") is None else _number(content, "global_batch", 1, 1 << 40),
    )
    _check_ranks(complete)
    return complete


def examine(checkpoint: Path, *, with_sums: bool = True) -> Verdict:
    """The verdict on a checkpoint: complete.json is sound, and every file has the bytes that were
    written; without sums, their number.
    """
    try:
        complete = read_complete(checkpoint)
        names = set(os.listdir(checkpoint))
    except FileNotFoundError:
        return Verdict(f"it has no {COMPLETE}: it was never finished")
    except (NewerFormat, OtherStep) as error:  # complete, as far as is known here
        return Verdict(str(error), is_certain=False)
    except ValueError as error:
        return Verdict(f"{COMPLETE} cannot be read: {error}")
    except OSError as error:
        return Verdict(f"{COMPLETE} cannot be read: {error}", is_certain=False)
    for name in sorted(names - complete.files.keys()):  # what DeepSpeed would load, too
        if MODEL_FILE.fullmatch(name) or OPTIMIZER_FILE.fullmatch(name):
            return Verdict(f"it holds {name}, which {COMPLETE} does not list")
    sizes = (_examine_file(checkpoint, stated, False) for stated in complete.files.values())
    wrong = next((verdict for verdict in sizes if verdict.problem is not None), None)
    if wrong is None and with_sums:
        # the hash lets other threads run
        with ThreadPoolExecutor(min(HASH_THREADS, len(complete.files))) as pool:
            sums = pool.map(lambda stated: _examine_file(checkpoint, stated, True), complete.files.values())
            wrong = next((verdict for verdict in sums if verdict.problem is not None), None)
    return wrong or Verdict(None, complete=complete)


def find_damage(checkpoint: Path) -> str | None:
    """The damage of a checkpoint, or None when every file is there with the bytes that were
    written."""
    return examine(checkpoint).problem


def find_file_damage(checkpoint: Path, stated: FileSum) -> str | None:
    """The damage of one file of a checkpoint, or None where it is as it was written."""
    return _examine_file(checkpoint, stated, True).problem


def _examine_file(checkpoint: Path, stated: FileSum, with_sums: bool) -> Verdict:
    name = stated.name
    try:
        with open_regular(checkpoint / name, below=checkpoint) as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            if num_bytes != stated.num_bytes:
                return Verdict(f"{name} has {num_bytes:,} bytes instead of {stated.num_bytes:,}")
            if with_sums and hash_stream(stream) != stated.sha256:
                return Verdict(f"{name} does not match its checksum")
    except (FileNotFoundError, NotADirectoryError):
        return Verdict(f"{name:.{SHOWN}} is missing")
    except ValueError as error:  # a link, a pipe, a folder
        return Verdict(f"{name:.{SHOWN}} is not what was written: {error}")
    except OSError as error:
        return Verdict(f"{name:.{SHOWN}} cannot be read: {error.strerror}", is_certain=False)
    return Verdict(None)


def _check_ranks(complete: Complete) -> None:
    """Raises ValueError where the list lacks a file that these ranks have written. Without it,
    DeepSpeed would load a file that no sum vouches for, or none."""
    if not complete.files:
        raise ValueError('"files" lists no file')
    model_ranks = _ranks(MODEL_FILE, complete.files)
    optimizer_ranks = _ranks(OPTIMIZER_FILE, complete.files)
    stage, ranks = complete.zero_stage, complete.world_size
    if stage is None and not model_ranks and not optimizer_ranks:
        return
    wanted_models = ranks if stage == 3 else 1
    if len(model_ranks) < wanted_models:
        raise ValueError(f'"files" lists the weights of {format_count(len(model_ranks), "rank")}, expected {wanted_models}')
    if (stage or (stage is None and optimizer_ranks)) and len(optimizer_ranks) != ranks:
        listed = format_count(len(optimizer_ranks), "rank")
        raise ValueError(f'"world_size" is {ranks} and "files" lists the optimizer states of {listed}')


def _ranks(pattern: re.Pattern[str], names: Iterable[str]) -> set[str | None]:
    return {match["rank"] for name in names if (match := pattern.fullmatch(name))}


def _number(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = content.get(key)
    if type(value) is not int:  # True is no number of ranks
        raise ValueError(f'"{key}" should be an integer, got {value!r:.{SHOWN}}')
    if not least <= value <= most:
        raise ValueError(f'"{key}" should be {least} to {most}, got {value!r:.{SHOWN}}')
    return value


def _file_sum(name: str, stated: Any) -> FileSum:
    path = PurePosixPath(name)
    is_plain = path.parts and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and name.isprintable()
    if not is_plain or name == COMPLETE:
        raise ValueError(f"{name!r:.{SHOWN}} is no file of this folder")
    if not isinstance(stated, dict):
        raise ValueError(f"{name!r:.{SHOWN}} should have bytes and sha256")
    sha256 = stated.get("sha256")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise ValueError(f'{name!r:.{SHOWN}} should have a "sha256" of 64 digits, got {sha256!r:.{SHOWN}}')
    num_bytes = stated.get("bytes")
    if type(num_bytes) is not int or not 0 <= num_bytes <= MAX_FILE_BYTES:
        raise ValueError(f'{name!r:.{SHOWN}} should have "bytes" from 0 to {MAX_FILE_BYTES}, got {num_bytes!r:.{SHOWN}}')
    return FileSum(name, num_bytes, sha256)
