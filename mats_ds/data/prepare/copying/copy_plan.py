"""Paths and estimated sizes of the copies of a manifest, decided from paths, sizes and headers
before a byte is written."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mats_ds.core.format import format_bytes, format_count
from mats_ds.core.shards.members import is_file, member_name, stat_file
from mats_ds.core.storage.files import open_regular
from mats_ds.core.storage.output_folder import NOT_COUNTED, check_output_folder, read_marker
from mats_ds.data.manifest import Manifest
from mats_ds.data.prepare.copying.copy_settings import DEFAULT_CRF, CopySettings
from mats_ds.data.prepare.copying.segment import can_cut
from mats_ds.data.prepare.copying.upright import MAX_CUT, copy_shape
from mats_ds.data.video.containers import promised_seconds
from mats_ds.data.video.indexing import READ_ERRORS, UnreadableVideo, open_video
from mats_ds.data.video.nvdec_support import SIDE_MULTIPLE

COMMAND = "prepare transcode"
JOURNAL = "copies.jsonl"
JOURNAL_BYTES = 1 << 20  # so many show whether it is one of ours
# Bits a pixel at the default quality, upper end of 60 real clips of K400, UCF101 and the like (0.05
# to 0.3); own measurement. Six steps of crf halve the bytes of H.264, about nine those of VP9.
BITS_PER_PIXEL = {"h264": 0.2, "vp9": 0.2}
HALVING_CRF = {"h264": 6, "vp9": 9}
SPARE_BYTES = 64 << 20
NUM_SAMPLED = 16
NUM_SHOWN, NUM_TRIED = 10, 4
SMALLER_COPIES = "give --out another disk, or take a smaller --short_side or a higher --crf"


@dataclass(frozen=True)
class PlannedCopy:
    """A source, its size (0 if it is missing), the .mp4 that it becomes; segments take that name's
    stem and a number."""

    source: str
    source_bytes: int
    target: str


def plan_copies(manifest: Manifest, out: Path, *, base: Path | None = None) -> list[PlannedCopy]:
    """One copy for each file of the manifest, in its order, in the same folders below `out` as the
    originals below `base`.

    Without `base`, or where a file lies outside it, the originals' common folder is the base. Two
    files of one folder whose names differ only in their ending keep it (a.avi.mp4). Raises
    ValueError when a copy would take the place of an original or of another copy.
    """
    sources = list(dict.fromkeys(os.path.abspath(path) for path in manifest.paths))
    start = os.path.abspath(base) if base else None
    if start is None or any(os.path.commonpath([start, source]) != start for source in sources):
        start = os.path.commonpath([os.path.dirname(source) for source in sources])
    # of a member of a shard the copy lies in a folder that bears the shard's name
    names = [os.path.relpath(member_name(source), start) for source in sources]
    stems = [os.path.splitext(name)[0] for name in names]
    uses = Counter(stems)
    planned = []
    for source, stem, whole in zip(sources, stems, names, strict=True):
        name = stem if uses[stem] == 1 else whole
        num_bytes = stat_file(source).num_bytes if is_file(source) else 0
        planned.append(PlannedCopy(source, num_bytes, str(out.absolute() / f"{name}.mp4")))
    _refuse_twins(planned, out)
    originals = {os.path.realpath(source) for source in sources}
    folders = {os.path.dirname(source) for source in originals}
    for copy in planned:
        resolved = os.path.realpath(copy.target)
        if not is_inside(resolved, out):
            raise ValueError(f"{copy.target} would be written to {resolved}: --out {out} holds a link that leads out of it")
        if resolved in originals or os.path.dirname(resolved) in folders:
            raise ValueError(f"--out {out} would put the copy {copy.target} among the originals: give a folder of its own")
    return planned


def _refuse_twins(planned: Sequence[PlannedCopy], out: Path) -> None:
    """Raises ValueError where two originals would get one copy, also where the disk takes A.mp4 and
    a.mp4 for one name."""
    spell = str.casefold if ignores_case(out) else str
    taken: dict[str, PlannedCopy] = {}
    for copy in planned:
        other = taken.setdefault(spell(copy.target), copy)
        if other is not copy:
            raise ValueError(
                f"{other.source} and {copy.source} would both be copied to {copy.target}: rename one of them, or copy them into "
                "two folders"
            )


def ignores_case(folder: Path) -> bool:
    """Whether files whose names differ in case only are one file there. Of a folder that is not
    there yet, its parent decides."""
    existing = _nearest_existing(folder)
    twin = existing.with_name(existing.name.swapcase())
    return twin != existing and twin.exists() and os.path.samefile(twin, existing)


def _nearest_existing(folder: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def is_inside(path: str, folder: Path) -> bool:
    """Whether a path leads below a folder, all links followed."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def check_out_folder(out: Path, *, scanned: Path | None = None) -> None:
    """Raises ValueError when `out` holds other files, or lies in the folder `scanned` whose videos
    are the originals."""
    resolved = out.resolve()
    if scanned is not None and (resolved == scanned.resolve() or scanned.resolve() in resolved.parents):
        raise ValueError(
            f"--out {out} lies inside {scanned}, where the originals are looked for: the copies would be copied next time. "
            "Give a folder outside of it"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    if out.is_dir() and read_marker(out) is None and not _is_empty(out) and not holds_copies(out):
        raise ValueError(f"--out {out} holds files, but no {JOURNAL} of an earlier run: give an empty or a new folder")
    check_output_folder(out, command=COMMAND, is_ours=holds_copies)


def holds_copies(folder: Path) -> bool:
    """Whether version 0.1 has made copies there: its journal names some, or is empty and nothing
    else is there."""
    try:
        with open_regular(folder / JOURNAL) as journal:
            lines = [line for line in journal.read(JOURNAL_BYTES).split(b"\n") if line]
    except (OSError, ValueError):
        return False
    if not lines:
        return all(path.name == JOURNAL or path.name in NOT_COUNTED for path in folder.iterdir())
    return any(line.startswith(b'{"source": ') and b'"pieces": ' in line for line in lines)


def _is_empty(folder: Path) -> bool:
    return all(path.name in NOT_COUNTED for path in folder.iterdir())


def estimate_bytes(planned: Sequence[PlannedCopy], settings: CopySettings) -> int:
    """About how many bytes the copies take, from the headers of a few files and the sizes of
    all."""
    present = [copy for copy in planned if copy.source_bytes]
    if not present:
        return 0
    indices = np.unique(np.linspace(0, len(present) - 1, NUM_SAMPLED).astype(int))
    steps = settings.used_crf - DEFAULT_CRF[settings.codec]
    bits_per_pixel = BITS_PER_PIXEL[settings.codec] * 2 ** (-steps / HALVING_CRF[settings.codec])
    sampled_bytes = copied_bytes = 0.0
    for copy in (present[index] for index in indices):
        num_pixels = _pixels_by_header(copy.source, settings.short_side)
        if num_pixels:
            sampled_bytes += copy.source_bytes
            copied_bytes += num_pixels * bits_per_pixel / 8
    ratio = copied_bytes / sampled_bytes if sampled_bytes else 1.0
    return int(ratio * sum(copy.source_bytes for copy in present))


def _pixels_by_header(path: str, short_side: int) -> float:
    """Pixels of all frames of the copy, as far as the header gives them; 0 where it does not."""
    try:
        container, stream = open_video(path)
    except (UnreadableVideo, *READ_ERRORS):
        return 0.0
    with container:
        width, height = stream.codec_context.width, stream.codec_context.height
        seconds = promised_seconds(container, stream) or (container.duration or 0) / av.time_base
        num_frames = stream.frames or seconds * float(stream.average_rate or stream.guessed_rate or 25)
    if not width or not height or num_frames <= 0:
        return 0.0
    return copy_shape(height, width, short_side=short_side).num_pixels * num_frames


def check_space(out: Path, needed_bytes: int, *, what: str = "copies", fix: str = SMALLER_COPIES) -> None:
    """Raises ValueError when the disk of `out` has not that much room."""
    existing = _nearest_existing(out)
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise ValueError(
            f"the {what} need about {format_bytes(needed_bytes)}, but {existing} has {format_bytes(free_bytes)} free: make room, "
            f"{fix}"
        )


def describe_plan(planned: Sequence[PlannedCopy], settings: CopySettings, *, segment_seconds: float | None = None) -> list[str]:
    """Lines on what a run would do, from the same figures that it would check."""
    total_bytes = sum(copy.source_bytes for copy in planned)
    missing = sum(not copy.source_bytes for copy in planned)
    lines = [
        f"{format_count(len(planned), 'file')}, {format_bytes(total_bytes)}"
        + (f", {missing:,} of them missing or empty" if missing else "")
    ]
    for copy in planned[:NUM_SHOWN]:
        target = copy.target if segment_seconds is None else f"{os.path.splitext(copy.target)[0]}_0000, _0001, ..."
        lines.append(f"  {copy.source} ({format_bytes(copy.source_bytes)}) -> {target}")
    if len(planned) > NUM_SHOWN:
        lines.append(f"  and {len(planned) - NUM_SHOWN:,} more")
    if segment_seconds is not None:
        lines.append(
            f"cut at the first keyframe after every {segment_seconds:g} s, nothing re-encoded: {format_bytes(total_bytes)}"
        )
        for copy in planned[:NUM_TRIED]:
            lines.append(f"  {copy.source}: {can_cut(copy.source, seconds=segment_seconds) or 'can be cut'}")
        return lines
    options = " ".join(f"{name}={value}" for name, value in settings.encoder_options().items())
    lines.append(
        f"short side at most {settings.short_side}, a keyframe every "
        f"{format_count(settings.gop, 'frame')}, {settings.codec}: {options}"
    )
    lines.append(
        f"sides are multiples of {SIDE_MULTIPLE}, as NVDEC wants them: for that up to {MAX_CUT:.0%} of a picture is cut off at "
        "its edges, nothing is stretched; colours by BT.601 in video range"
        if settings.short_side % SIDE_MULTIPLE == 0
        else f"--short_side {settings.short_side} is no multiple of {SIDE_MULTIPLE}: PyAV decodes such copies also where there "
        "is a GPU; colours by BT.601 in video range"
    )
    lines.append(f"estimated bytes: {format_bytes(estimate_bytes(planned, settings))}")
    return lines
