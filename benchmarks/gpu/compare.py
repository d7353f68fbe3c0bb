"""Frames of a device's decoder against PyAV's, frame by frame, where DALI was read to go wrong: the
cases, and what is seen in each.

The files of a case go through one decoder in one process, one after the other or in one chunk, as
in a training. Nothing is scaled: what is compared is the part that all files of a case have, from
their upper left corner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.video_files import FORMATS, write_format
from mats_ds.data.loading.nvdec.chunks import DeviceDecoder
from mats_ds.data.loading.reader import EncodedClip, Region, read_encoded
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import why_on_cpu

GOAL_PSNR = 38.0  # the worst frame; another frame, or another matrix, is below 33
NUM_COMPARED, STRIDE = 16, 3
NewDecoder = Callable[[tuple[int, int]], DeviceDecoder]  # from (height, width) of what it gives


@dataclass(frozen=True)
class Case:
    """Formats that go through one decoder in this order; together: in one chunk. fault: that of the
    stand-in (stand_in.py) which it is to see."""

    name: str
    formats: tuple[str, ...]
    together: bool = False
    fault: str = ""


# Of two files, that which would be spoilt comes last.
CASES = (
    *(Case(name, (name,)) for name in ("h264", "h264, open GOP", "hevc", "mpeg4 (XviD AVI)", "vp9", "av1", "variable rate")),
    Case("340 x 256 after 352 x 256", ("352 x 256", "340 x 256"), fault="sizes"),
    Case("352 x 256 after 340 x 256", ("340 x 256", "352 x 256"), fault="sizes"),
    Case("tagged BT.709", ("BT.709",), fault="colours"),
    Case("VP9 of odd sides", ("vp9, odd",), fault="odd"),
    Case("AV1 beside H.264", ("h264", "av1"), together=True),
    *(Case(name, (name,)) for name in ("odd size", "h264, 4:2:2", "hevc, 10 bit", "rotated")),
)


@dataclass(frozen=True)
class Seen:
    """One file of a case. reason: why the loader gives it to PyAV, "" for NVDEC. psnr: of the worst
    frame, in dB; None where the device refused it, with its words in `error`."""

    format: str
    reason: str
    psnr: float | None
    error: str = ""

    @property
    def is_equal(self) -> bool:
        return self.psnr is not None and self.psnr >= GOAL_PSNR

    def describe(self) -> str:
        figure = f"worst PSNR {self.psnr:.1f} dB" if self.psnr is not None else "refused"
        return f"{self.format}: {figure}, {f'PyAV decodes it ({self.reason})' if self.reason else 'NVDEC decodes it'}"


def compare_case(case: Case, folder: Path, new_decoder: NewDecoder) -> list[Seen]:
    """What is seen of each file of a case. Raises what PyAV raises where it has no such encoder."""
    paths = [folder / FORMATS[name].file for name in case.formats]
    for path, name in zip(paths, case.formats, strict=True):
        if not path.exists():
            write_format(path, FORMATS[name])
    indices = [index_video(str(path)) for path in paths]
    size = min(index.height for index in indices), min(index.width for index in indices)
    numbers = np.arange(0, min(index.num_frames for index in indices), STRIDE)[:NUM_COMPARED]
    decoder = new_decoder(size)
    shown: list[np.ndarray | RuntimeError] = []
    for chunk in [paths] if case.together else [[path] for path in paths]:
        frames = decode_chunk(decoder, chunk, numbers, size)
        if isinstance(frames, RuntimeError) and len(chunk) > 1:  # as the loader: one by one, on a fresh one
            shown += [decode_chunk(new_decoder(size), [path], numbers, size) for path in chunk]
            shown = [one if isinstance(one, RuntimeError) else one[0] for one in shown]
        else:
            shown += [frames] * len(chunk) if isinstance(frames, RuntimeError) else list(frames)
    seen = []
    for name, path, index, frames in zip(case.formats, paths, indices, shown, strict=True):
        if isinstance(frames, RuntimeError):
            seen.append(Seen(name, why_on_cpu(index), None, str(frames)[-300:]))
            continue
        expected = as_coded(decode_frames(str(path), numbers), index)[:, : size[0], : size[1]]
        seen.append(Seen(name, why_on_cpu(index), float(psnr(expected, frames).min())))
    return seen


def as_coded(frames_THWC: np.ndarray, index) -> np.ndarray:
    """Upright frames, which PyAV's way gives, as they lie in the file, which DALI gives."""
    return np.rot90(frames_THWC, -index.orientation.quarters, axes=(1, 2)) if index.orientation.quarters else frames_THWC


def decode_chunk(
    decoder: DeviceDecoder, paths: Sequence[Path], numbers: np.ndarray, size: tuple[int, int]
) -> np.ndarray | RuntimeError:
    """uint8 [B, T, height, width, 3] of the upper left corners, or the decoder's refusal."""
    region = Region((0, 0, *size), flip=False)
    encoded = [read_encoded(str(path)) for path in paths]
    clips = [EncodedClip(data if len(data) else np.zeros(1, np.uint8), numbers.astype(np.int32), region, "") for data in encoded]
    try:
        decoder.start(clips)
        return np.stack([frames.cpu().numpy() for frames in decoder.finish()])
    except RuntimeError as error:
        return error


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """psnr_T in dB, of every frame."""
    squared = np.square(one.astype(np.float32) - other.astype(np.float32)).reshape(len(one), -1).mean(1)
    return 10 * np.log10(255.0**2 / np.maximum(squared, 1e-4))


@dataclass(frozen=True)
class SeenBroken:
    """A broken file. reason: why the loader does not give it to NVDEC, "" if it does. num_other:
    how many of the device's frames are not PyAV's; None where it refused the file. goes_on: whether
    a good file still comes through the same decoder afterwards."""

    kind: str
    reason: str
    num_other: int | None
    goes_on: bool

    @property
    def is_silent(self) -> bool:
        """Wrong frames would reach a training, without an error."""
        return bool(self.num_other) and not self.reason

    def describe(self) -> str:
        device = "refused" if self.num_other is None else f"{self.num_other} wrong frames" if self.num_other else "PyAV's frames"
        return f"{self.kind}: {device}, {self.reason or 'NVDEC gets it'}"


def compare_broken(kind: str, path: Path, good: Path, decoder: DeviceDecoder, size: tuple[int, int]) -> SeenBroken:
    """What a decoder makes of a broken file: the last frames that its index has, or 16 where it has
    none."""
    numbers, expected = np.arange(NUM_COMPARED), None
    try:
        index = index_video(str(path))
    except UnreadableVideo as unreadable:
        reason = f"unreadable: {unreadable.reason}"
    else:
        reason = why_on_cpu(index)
        numbers = np.arange(max(0, index.num_frames - NUM_COMPARED), index.num_frames)
        with contextlib.suppress(UnreadableVideo):  # PyAV refuses some of these frames: any other is wrong
            expected = decode_frames(str(path), numbers)
    frames = decode_chunk(decoder, [path], numbers, size)
    num_other = None
    if not isinstance(frames, RuntimeError):
        num_other = len(numbers) if expected is None else count_other(expected, frames[0])
    after = decode_chunk(decoder, [good], np.arange(4), size)
    goes_on = not isinstance(after, RuntimeError) and not count_other(decode_frames(str(good), np.arange(4)), after[0])
    return SeenBroken(kind, reason, num_other, goes_on)


def count_other(expected: np.ndarray, frames: np.ndarray) -> int:
    """How many frames are not those expected, of which only the upper left corner counts."""
    height, width = frames.shape[1:3]
    return int((psnr(expected[:, :height, :width], frames) < GOAL_PSNR).sum())
