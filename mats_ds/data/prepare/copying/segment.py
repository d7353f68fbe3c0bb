"""A long video file -> segments cut at keyframes: the packets are copied, nothing is re-encoded, no
picture changes.

Each segment begins with the first keyframe at or after a multiple of `seconds` that nothing refers
across, decodes alone, and counts its time from 0. Packets stream through one by one: of an hour of
video, only their time stamps are held (8 bytes a frame). Sound is left out. All segments appear at
once, after each has been read back.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from mats_ds.core.storage.files import is_same_file
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.transcode import CopyFailed, transcode_file
from mats_ds.data.prepare.publishing import Publisher, publish
from mats_ds.data.video.containers import file_url
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import READ_ERRORS, UnreadableVideo, describe_read_error, index_video, open_video

MP4_CODECS = frozenset(("h264", "hevc", "mpeg4", "av1", "vp9"))
# a segment longer than this many times `seconds` means that the keyframes lie too far apart
MAX_OVERSHOOT = 2.0
SAME_TIME_SECONDS = 2e-3  # Matroska rounds time stamps to milliseconds


@dataclass(frozen=True)
class Segment:
    """One piece: frames [first_frame, first_frame + num_frames) of the source, [first_seconds,
    last_seconds) on its clock."""

    path: str
    first_frame: int
    num_frames: int
    first_seconds: float
    last_seconds: float
    num_bytes: int

    def time_range(self, start_seconds: float, end_seconds: float) -> tuple[float, float] | None:
        """A range of the source (nan: open) in this segment's own time, nan where it covers that
        end; None: not in here."""
        start = 0.0 if math.isnan(start_seconds) else start_seconds
        end = math.inf if math.isnan(end_seconds) else end_seconds
        frame_seconds = (self.last_seconds - self.first_seconds) / self.num_frames
        # Less than one frame of overlap may hold no frame at all.
        if min(end, self.last_seconds) - max(start, self.first_seconds) < frame_seconds * 0.999:
            return None
        first = round(start - self.first_seconds, 6) if start > self.first_seconds else math.nan
        last = round(end - self.first_seconds, 6) if end < self.last_seconds else math.nan
        return first, last

    def moved_range(self, start_seconds: float, end_seconds: float) -> tuple[float, float] | None:
        """The same for a piece that is the whole source: only counted from its first frame. None:
        it ends before that."""
        if end_seconds <= self.first_seconds:
            return None
        first = round(start_seconds - self.first_seconds, 6)
        return (max(0.0, first) if not math.isnan(first) else first), round(end_seconds - self.first_seconds, 6)


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Cuts of a file. P packets in decoding order, G segments.

    first_packet_G, first_frame_G, num_frames_G: of each segment; first_pts_G: time stamp of its
    first frame.
    """

    first_packet_G: list[int]
    first_frame_G: list[int]
    num_frames_G: list[int]
    first_pts_G: list[int]


def segment_file(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    seconds: float,
    reencode: CopySettings | None = None,
    name: str | None = None,
    publisher: Publisher | None = None,
    on_heartbeat: Callable[[], None] = lambda: None,
) -> list[Segment]:
    """Cut `source` into `folder`/NAME_0000.mp4, ... (.mkv where MP4 cannot hold the codec or its
    times); NAME: the source's.

    With `reencode`, a file that cannot be cut as it is gets transcoded with these settings first
    and its copy is cut. `on_heartbeat` is called for every packet that is read and every segment
    that is read back.
    publisher: which files of the segments' names may be replaced; None: any but the original.
    Raises UnreadableVideo for a broken source and CopyFailed where it cannot be cut, both with
    nothing written.
    """
    check_seconds(seconds)
    source, folder = os.fspath(source), Path(folder)
    name, publisher = name or Path(source).stem, publisher or Publisher()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _cut(index_video(source), folder, seconds=seconds, name=name, publisher=publisher, on_heartbeat=on_heartbeat)
    except CopyFailed as failure:
        if reencode is None:
            raise CopyFailed(f"{failure.reason}; --reencode transcodes it first, then cuts") from None
    copy = publisher.open_part(folder, "whole.mp4")
    try:
        unnoted = Publisher(publisher.prefix)  # what becomes of it are the pieces
        later = transcode_file(source, copy, settings=reencode, publisher=unnoted, on_heartbeat=on_heartbeat).first_seconds
        copied = index_video(str(copy))
        pieces = _cut(copied, folder, seconds=seconds, name=name, publisher=publisher, on_heartbeat=on_heartbeat)
        return [
            replace(piece, first_seconds=piece.first_seconds + later, last_seconds=piece.last_seconds + later) for piece in pieces
        ]
    finally:
        with contextlib.suppress(FileNotFoundError):
            copy.unlink()


def check_seconds(seconds: float) -> None:
    """Raises ValueError for a length that no segment can have."""
    if not 0.1 <= seconds < math.inf:
        raise ValueError(f"--segment is at least 0.1 seconds, got {seconds:g}")


def can_cut(source: str | os.PathLike[str], *, seconds: float) -> str:
    """The reason why a file cannot be cut without re-encoding, empty if it can.

    Reads its packets, decodes one picture, writes nothing.
    """
    try:
        _plan_cuts(index_video(os.fspath(source)), seconds=seconds)
    except (CopyFailed, UnreadableVideo) as failure:
        return failure.reason
    return ""


def _cut(
    index: VideoIndex, folder: Path, *, seconds: float, name: str, publisher: Publisher, on_heartbeat: Callable[[], None]
) -> list[Segment]:
    cuts = _plan_cuts(index, seconds=seconds, on_heartbeat=on_heartbeat)
    suffix = ".mkv" if index.codec not in MP4_CODECS or index.container.startswith("matroska") else ".mp4"
    targets = [folder / f"{name}_{number:04d}{suffix}" for number in range(len(cuts.first_packet_G))]
    for target in targets:
        if is_same_file(target, index.path):
            raise ValueError(f"{target} is the original itself: give another folder")
        publisher.check_target(target)
    parts: list[Path] = []
    try:
        parts += [publisher.open_part(folder, number) for number in range(len(targets))]
        _copy_packets(index, cuts, parts, "matroska" if suffix == ".mkv" else "mp4", on_heartbeat)
        for number, part in enumerate(parts):
            name = targets[number].name
            _verify(part, index, name=name, first=cuts.first_frame_G[number], num_frames=cuts.num_frames_G[number])
            on_heartbeat()
        for part, target in zip(parts, targets, strict=True):
            publisher.note(part, target)
            publish(part, target)
    finally:
        for part in parts:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
    seconds_F = index.seconds()
    begins = [float(seconds_F[frame]) for frame in cuts.first_frame_G]
    ends = [*begins[1:], float(seconds_F[-1]) + index.frame_seconds()]
    return [
        Segment(str(target), frame, count, begin, end, os.path.getsize(target))
        for target, frame, count, begin, end in zip(targets, cuts.first_frame_G, cuts.num_frames_G, begins, ends, strict=True)
    ]


def _plan_cuts(index: VideoIndex, *, seconds: float, on_heartbeat: Callable[[], None] = lambda: None) -> _Cuts:
    """The first sound keyframe at or after each multiple of `seconds`. Raises CopyFailed where
    there is none in time."""
    if not index.trusts_pts:
        raise CopyFailed(f"its time stamps cannot be trusted ({index.container} stores none for B-frames)")
    if index.doubt:
        raise CopyFailed(f"its packets do not give its frames ({index.doubt})")
    pts_P = _scan_packets(index, on_heartbeat)
    if len(pts_P) != index.num_frames:
        raise CopyFailed("not every packet of it is one frame")
    key_P = np.isin(pts_P, index.keyframe_pts_K)  # by their headers, whatever the container marks
    # A keyframe is sound if all earlier packets are shown before it and all later ones after it (no
    # open group of pictures).
    latest_before_P = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(pts_P)[:-1]])
    earliest_from_P = np.minimum.accumulate(pts_P[::-1])[::-1]
    sound = np.flatnonzero(key_P & (latest_before_P < pts_P) & (earliest_from_P == pts_P))
    if not len(sound) or sound[0] != 0:
        raise CopyFailed("it does not begin with a keyframe")
    seconds_of_sound = (pts_P[sound] - index.pts_F[0]) * float(index.time_base)
    length = float(index.seconds()[-1] - index.seconds()[0]) + index.frame_seconds()
    multiples = np.arange(1, math.ceil(length / seconds)) * seconds
    indices = np.unique(np.searchsorted(seconds_of_sound, multiples - 1e-6))
    chosen = [0, *(int(number) for number in indices if number < len(sound))]
    longest = float(np.diff(np.append(seconds_of_sound[chosen], length)).max())
    if longest > MAX_OVERSHOOT * seconds:
        raise CopyFailed(f"keyframes too far apart: cut every {seconds:g} s, a segment would last {longest:.1f} s")
    first_packet_G = [int(sound[number]) for number in chosen]
    first_pts_G = [int(pts_P[packet]) for packet in first_packet_G]
    # With sound keyframes, as many frames are shown before a cut as packets are stored before it.
    num_frames_G = np.diff([*first_packet_G, len(pts_P)]).tolist()
    return _Cuts(first_packet_G, first_packet_G, num_frames_G, first_pts_G)


def _scan_packets(index: VideoIndex, on_heartbeat: Callable[[], None]) -> np.ndarray:
    """int64 time stamps [P] of all packets, in decoding order."""
    pts = []
    for packet in _packets(index):
        pts.append(packet.pts)
        on_heartbeat()
    return np.asarray(pts, np.int64)


def _packets(index: VideoIndex) -> Iterator[av.Packet]:
    """The packets of a file that hold something, in decoding order. Raises UnreadableVideo where
    one is torn or has no time."""
    try:
        container, stream = open_video(index.path, stream_index=index.stream_index)
        with container:
            for number, packet in enumerate(container.demux(stream)):
                if not packet.size:
                    continue
                if packet.is_corrupt or packet.pts is None:
                    raise UnreadableVideo(f"packet {number} is torn")
                yield packet
    except READ_ERRORS as error:
        raise UnreadableVideo(f"breaks off: {describe_read_error(error)}") from None


def _copy_packets(index: VideoIndex, cuts: _Cuts, parts: list[Path], kind: str, on_heartbeat: Callable[[], None]) -> None:
    """Write each segment's packets, its time counted from its first frame."""
    container, template = open_video(index.path, stream_index=index.stream_index)
    with container:
        segment, output = -1, None
        try:
            for number, packet in enumerate(_packets(index)):
                if segment + 1 < len(parts) and number == cuts.first_packet_G[segment + 1]:
                    if output is not None:
                        output.close()
                    segment += 1
                    output, stream = _open_part(parts[segment], kind, template, index)
                origin = cuts.first_pts_G[segment]
                packet.pts -= origin
                if packet.dts is not None:
                    packet.dts -= origin
                packet.stream = stream
                output.mux(packet)
                on_heartbeat()
        except READ_ERRORS as error:
            raise CopyFailed(f"cannot be cut: {describe_read_error(error)}") from None
        finally:
            if output is not None:
                output.close()


def _open_part(part: Path, kind: str, template: av.VideoStream, index: VideoIndex):
    """An output file, of the format `kind`, with one stream like the source's."""
    output = av.open(file_url(part), "w", format=kind)
    stream = output.add_stream_from_template(template, opaque=True)
    stream.time_base = index.time_base
    return output, stream


def _verify(part: Path, index: VideoIndex, *, name: str, first: int, num_frames: int) -> None:
    """Read back the segment `name`: its packets and times are the source's, and its first group of
    pictures decodes alone."""
    try:
        written = index_video(str(part))
        num_alone = (
            int(np.searchsorted(written.pts_F, written.keyframe_pts_K[1])) if len(written.keyframe_pts_K) > 1 else num_frames
        )
        num_decoded = _count_decoded(written, num_alone)
    except (UnreadableVideo, *READ_ERRORS) as error:
        raise CopyFailed(f"{name} cannot be read back: {describe_read_error(error)}") from None
    if written.num_frames != num_frames or num_decoded < num_alone:
        raise CopyFailed(f"{name} has {written.num_frames} of {num_frames} frames, {num_decoded} of its first {num_alone} decode")
    expected_seconds = index.seconds()[first : first + num_frames]
    if np.abs(written.seconds() - (expected_seconds - expected_seconds[0])).max() > SAME_TIME_SECONDS:
        raise CopyFailed(f"{name} has other times than the source")
    if (written.upright_size, written.orientation) != (index.upright_size, index.orientation):
        raise CopyFailed(f"{name} lost that its pictures are {index.orientation}")


def _count_decoded(index: VideoIndex, num_wanted: int) -> int:
    container, stream = open_video(index.path, stream_index=index.stream_index)
    count = 0
    with container:
        for packet in container.demux(stream):
            for frame in packet.decode():
                count += not frame.is_corrupt
                if count >= num_wanted:
                    return count
    return count
