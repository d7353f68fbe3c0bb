"""Check before a run that all hosts have the same code, recipe, DeepSpeed JSON and videos, in one
exchange between all ranks.

What differs would not stop a run but spoil it: ranks would train different models on different
clips, or wait for each other for ever. Paths are compared below their common folder, so that every
host may keep the videos on a disk of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mats_ds.config.recipe import Recipe
from mats_ds.core.run_dir import PACKAGES, collect_versions
from mats_ds.core.text import Lines
from mats_ds.distributed.collectives import Ranks, ask_first, gather_on_all

# Where a host keeps its videos and how it reads them is its own affair.
LOCAL_KEYS = frozenset(
    ("data.manifest", "data.root", "data.num_workers", "data.prefetch", "evaluation.manifest", "evaluation.root")
)
UNIMPORTANT_PACKAGES = frozenset(("nvidia-ml-py",))  # it only measures
RECIPE, DS_CONFIG, CODE, VIDEOS = "the recipe", "the DeepSpeed JSON", "the code of mats_ds", "the videos"
DIGEST_LETTERS = 12
MAX_HOSTS_NAMED = 4
MAX_LINES = 20


class Videos(Protocol):
    """The fields of a manifest of S videos."""

    paths: list[str]
    label_S: np.ndarray
    first_seconds_S: np.ndarray
    last_seconds_S: np.ndarray


V = TypeVar("V")


@dataclass(frozen=True)
class _Report:
    """The inputs of one rank, for the others. `facts`: name -> a short text that must be the same
    everywhere."""

    host: str
    error: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def check_consistent(
    open_videos: Callable[[], V], ranks: Ranks, *, recipe: Recipe | None = None, ds_config: Mapping[str, Any] | None = None
) -> V:
    """The manifest that `open_videos()` returns, if every rank can open it and has the same one;
    called by every rank.

    With a recipe, it, the JSON, the versions and the code must be the same too. Raises one
    ValueError on all ranks that names the hosts and their values; a ValueError of `open_videos` is
    raised on all ranks too, instead of leaving them waiting.
    """
    videos, report = None, None
    try:
        videos = open_videos()
    except ValueError as error:
        report = _Report(socket.gethostname(), str(error))
    if report is None:
        report = _Report(socket.gethostname(), None, describe_inputs(videos, recipe=recipe, ds_config=ds_config))
    reports = gather_on_all(report, ranks)
    failed = [number for number, other in enumerate(reports) if other.error is not None]
    if failed:
        raise ValueError(_describe_failures(reports, failed))
    if names := find_differences(reports):
        details = gather_on_all(_details(recipe, ds_config), ranks) if recipe is not None else [{}] * len(reports)
        raise ValueError(describe_differences(reports, details, names))
    return videos


def describe_inputs(videos: Videos | None, *, recipe: Recipe | None, ds_config: Mapping[str, Any] | None) -> dict[str, str]:
    """The facts that must be the same on all ranks: name -> a version, or a count and a hash."""
    facts = {} if videos is None else {VIDEOS: f"{len(videos.paths)} ({hash_videos(videos)})"}
    if recipe is None:
        return facts
    facts["Python"] = ".".join(platform.python_version_tuple()[:2])
    for name in sorted({*PACKAGES} - UNIMPORTANT_PACKAGES):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts[CODE] = hash_code()
    facts[RECIPE] = _digest(json.dumps(shared_keys(recipe), sort_keys=True).encode())
    facts[DS_CONFIG] = _digest(json.dumps(flatten(ds_config or {}), sort_keys=True).encode())
    return facts


def hash_videos(videos: Videos) -> str:
    """A hash of the paths below their common folder, the labels and the usable parts, in their
    order."""
    common = os.path.commonprefix([min(videos.paths), max(videos.paths)]) if videos.paths else ""
    start = common.rfind(os.sep) + 1
    return _digest(
        "\0".join(path[start:] for path in videos.paths).encode(errors="surrogateescape"),
        *(np.ascontiguousarray(column).tobytes() for column in (videos.label_S, videos.first_seconds_S, videos.last_seconds_S)),
    )


def hash_code() -> str:
    """A hash of all Python files of this package, which covers also changes that are not
    committed."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(package.rglob("*.py"))
    return _digest(*(part for file in files for part in (file.relative_to(package).as_posix().encode(), file.read_bytes())))


def shared_keys(recipe: Recipe) -> dict[str, Any]:
    """The recipe as section.key -> value, without what a host may have of its own."""
    return {key: value for key, value in flatten(recipe.model_dump(mode="json")).items() if key not in LOCAL_KEYS}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def find_differences(reports: Sequence[_Report]) -> list[str]:
    """Names of the facts that are not the same on all ranks, in their order."""
    return [name for name in reports[0].facts if len({report.facts[name] for report in reports}) > 1]


def describe_differences(reports: Sequence[_Report], details: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """One line a difference, with every value and the hosts that have it. `details`: by rank, see
    `_details`."""
    lines: list[str] = []
    for name in names:
        keys = sorted({key for detail in details for key in detail.get(name, {})})
        split = [[json.dumps(detail.get(name, {}).get(key)) for detail in details] for key in keys]
        differing = [(f"{name}: {key}", values) for key, values in zip(keys, split, strict=True) if len(set(values)) > 1]
        for title, values in differing or [(name, [report.facts[name] for report in reports])]:
            lines.append(f"  {title}: {_list_values(reports, values)}")
    more = [f"  and {len(lines) - MAX_LINES:,} more"] if len(lines) > MAX_LINES else []
    return Lines(
        "the hosts of this run do not have the same:",
        *lines[:MAX_LINES],
        *more,
        "give all of them the same files (one checkout and one .venv on a shared disk, or fresh copies), and the same "
        f"command; only {', '.join(sorted(LOCAL_KEYS))} may differ",
    )


def _list_values(reports: Sequence[_Report], values: Sequence[str]) -> str:
    """`a on alpha; b on beta, gamma`."""
    ranks_of: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(value, []).append(rank)
    return "; ".join(f"{value} on {_name_hosts(reports, ranks)}" for value, ranks in ranks_of.items())


def _name_hosts(reports: Sequence[_Report], ranks: Sequence[int]) -> str:
    """The hosts of these ranks; where only some ranks of a host are meant, they are named too."""
    names: list[str] = []
    for host in dict.fromkeys(reports[rank].host for rank in ranks):
        meant = [rank for rank in ranks if reports[rank].host == host]
        there = [rank for rank, report in enumerate(reports) if report.host == host]
        names.append(host if meant == there else f"{host} (rank {', '.join(map(str, meant))})")
    more = len(names) - MAX_HOSTS_NAMED
    return ", ".join(names[:MAX_HOSTS_NAMED]) + (f" and {more} more hosts" if more > 0 else "")


def _describe_failures(reports: Sequence[_Report], failed: Sequence[int]) -> str:
    """The error alone where all ranks have the same, else with the hosts that have it."""
    errors = list(dict.fromkeys(reports[rank].error for rank in failed))
    if len(failed) == len(reports) and len(errors) == 1:
        return errors[0]
    lines: list[str] = []
    for error in errors:
        first, *rest = error.split("\n") if isinstance(error, Lines) else [error]
        lines += [f"on {_name_hosts(reports, [rank for rank in failed if reports[rank].error == error])}: {first}", *rest]
    return Lines(*lines)


def _details(recipe: Recipe, ds_config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The details, sent only when something differs: the values behind the hashes."""
    code = {"commit": collect_versions().get("commit", "unknown"), "hash": hash_code()}
    return {RECIPE: shared_keys(recipe), DS_CONFIG: flatten(ds_config or {}), CODE: code}


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:DIGEST_LETTERS]


APPEAR_SECONDS = 5.0  # how long a file of another host may take to appear on a network filesystem
POLL_SECONDS = 0.1


def check_shared_folder(folder: Path, ranks: Ranks, *, appear_seconds: float = APPEAR_SECONDS) -> None:
    """Called by every rank, with a folder that exists for rank 0.

    Raises ValueError on all ranks where rank 0 cannot write into it, or where a rank does not see
    what rank 0 wrote.
    """

    def write_file() -> str:
        name = f".seen-by-all-{secrets.token_hex(8)}"
        try:
            (folder / name).touch()
        except OSError as error:
            raise ValueError(f"cannot write into the run folder {folder}: {error.strerror}") from None
        return name

    file = folder / ask_first(write_file, ranks)
    answers = gather_on_all((socket.gethostname(), _appears(file, appear_seconds)), ranks)
    if ranks.rank == 0:
        file.unlink(missing_ok=True)
    blind = list(dict.fromkeys(host for host, sees in answers if not sees))
    if blind:
        raise ValueError(
            f"the run folder {os.path.abspath(folder)} is not the same everywhere: {', '.join(blind)} does not see what "
            f"{answers[0][0]} writes there. Checkpoints need the parts of all ranks in one folder: give an --out on a filesystem "
            "that all hosts share (videos may lie on disks of their own), or train on one host"
        )


def _appears(file: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
