"""(file, frame numbers) -> decoded pictures on the CPU, by PyAV: every codec, exact frame numbers,
as little decoding as needed.

Three decoding paths, tried in this order:
1. Where the index knows which bytes every packet takes (H.264 in MP4, MPEG-4 in AVI), only the
   packets that the wanted frames depend on are read and decoded, without the container.
2. Else the container is positioned at the keyframe before the first wanted frame, and again
   wherever the way to the next one is long; frames that nobody refers to and nobody wants are
   skipped. Where times cannot be sought exactly or trusted, key packets are known by their bytes
   instead (mats_ds.data.video.packet_seek).
3. What that does not bring is decoded from the start and counted.
CPU ms for a clip of 16 frames at stride 4 from H.264 of 340 x 256, container and all, before and
after the first path was introduced: GOP 250 23.8, 20.9; GOP 12 20.4, 18.0; training copies 8.6,
7.1; not a bit differs. FFmpeg's flag "fast" was tried too: it saves nothing. Skipping the loop
filter would save more, but changes the pictures.

(Over 300 lines: the three decoding paths are one decision.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av
import numpy as np
from av.error import FFmpegError

from mats_ds.core.clips import ClipSpec
from mats_ds.core.shards.members import FileBytes, open_file
from mats_ds.data.bitstream.palette import is_palette
from mats_ds.data.video.clip_frames import RgbConverter
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, describe_read_error, open_video
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.judgement import describe_empty_range, judge_failure
from mats_ds.data.video.packet_seek import read_by_key_packets
from mats_ds.data.video.packets import PacketTable

# Decoders for which leaving out unwanted non-reference frames changes no bit of the others; dav1d
# drops wanted ones.
SKIPPING_CODECS = frozenset(("h264", "hevc", "mpeg4"))
# A later keyframe is sought only beyond this distance: to decode the few frames up to it costs less
# than to start anew.
SEEK_FRAMES = 24
# Called with the number of a wanted frame and its picture; a second call for a number replaces the
# first.
Take = Callable[[int, av.VideoFrame], None]


def frame_numbers(spec: ClipSpec, *, index: VideoIndex) -> np.ndarray:
    """The frames of a clip, int64 [T], ascending.

    Only frames whose time lies in [first_seconds, last_seconds) are used. Dense: T frames spread
    evenly over `span` frames, beginning at the fraction `start` of the possible beginnings; over
    all of a range that is shorter than the span (repeated if it has fewer than T). With
    `span_seconds` the same in time: at each of T moments the frame that is shown then, so frame
    rates may differ or vary. Uniform: the range is cut into T equal segments, whose borders need
    not fall on frames; `segment_starts` (or `start` for all) says which frame of each.
    Raises UnreadableVideo when no frame lies in the range.
    """
    first, last = allowed_range(spec, index)
    num_allowed = last - first
    steps_T = np.arange(spec.num_frames)
    if spec.sampling == "uniform":
        # 2**20ths keep the arithmetic in whole numbers, hence the same everywhere; upwards, so that
        # 0.9 of ten frames is 9.
        fractions_T = np.array(spec.segment_starts or spec.num_frames * (spec.start,))
        assert len(fractions_T) == spec.num_frames, "a uniform clip has a fraction for each of its segments"
        shifts_T = np.minimum(np.ceil(fractions_T * 2**20), 2**20 - 1).astype(np.int64)
        return first + (steps_T * 2**20 + shifts_T) * num_allowed // (spec.num_frames * 2**20)
    if spec.span_seconds is not None:
        return first + _shown_at(index.seconds()[first:last], spec, last_seconds=index.frame_seconds())
    span = min(spec.span or spec.num_frames * spec.stride, num_allowed)
    num_beginnings = num_allowed - span + 1
    # a little more, so that 0.7 of ninety beginnings is 63
    begin = first + min(int(spec.start * num_beginnings + 1e-9), num_beginnings - 1)
    return begin + steps_T * span // spec.num_frames


def _shown_at(seconds_F: np.ndarray, spec: ClipSpec, *, last_seconds: float) -> np.ndarray:
    """For T moments spread over `span_seconds`, the number of the frame that is shown; the last
    frame lasts `last_seconds`."""
    duration = seconds_F[-1] + last_seconds - seconds_F[0]
    span = min(spec.span_seconds, duration)
    moments_T = seconds_F[0] + spec.start * (duration - span) + np.arange(spec.num_frames) * span / spec.num_frames
    return shown_at(seconds_F, moments_T)


def shown_at(seconds_F: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The number of the frame that is shown at each of these moments, int64; the first one before
    it."""
    # a moment that rounding puts just before a frame belongs to that frame
    return np.maximum(np.searchsorted(seconds_F, moments + 1e-6, side="right") - 1, 0)


def decode_frames(path: str, numbers: np.ndarray, *, index: VideoIndex | None = None) -> np.ndarray:
    """The frames of these numbers (any order, repeats allowed), uint8 RGB [T, H, W, 3], upright.

    Raises UnreadableVideo when one of them is missing, corrupt or cannot be decoded.
    """
    index = index or index_video(path)
    numbers_T = np.asarray(numbers, np.int64)
    convert = RgbConverter(index.height, index.width)
    frames_THWC = np.empty((len(numbers_T), index.height, index.width, 3), np.uint8)

    def take(number: int, frame: av.VideoFrame) -> None:
        frames_THWC[numbers_T == number] = convert(frame)

    visit_frames(path, numbers_T, index=index, take=take)
    return np.ascontiguousarray(index.orientation.apply(frames_THWC, axes=(1, 2)))


def visit_frames(path: str, numbers: np.ndarray, *, index: VideoIndex, take: Take) -> None:
    """Decode the frames of these numbers and hand each to `take`, as it is coded: not made upright.

    Raises UnreadableVideo when one of them is missing, corrupt or cannot be decoded, with what a
    check of the file would say of it.
    """
    try:
        _visit(path, numbers, index=index, take=take)
    except UnreadableVideo as unreadable:
        wanted = np.asarray(numbers).tolist()
        raise UnreadableVideo(judge_failure(path, wanted, unreadable.reason)) from None


def _visit(path: str, numbers: np.ndarray, *, index: VideoIndex, take: Take) -> None:
    wanted = np.array(sorted(set(np.asarray(numbers).tolist())), np.int64)
    if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= index.num_frames:
        raise UnreadableVideo(f"frames {np.asarray(numbers).tolist()} asked for, it has {index.num_frames}")
    if index.is_sound_F is not None and not index.is_sound_F[wanted].all():
        damaged = int(wanted[~index.is_sound_F[wanted]][0])
        raise UnreadableVideo(f"frame {damaged} is corrupt, or a packet that it needs")
    ways = [_decode_packets] if index.packets is not None else []
    if index.from_start:
        pass  # later packets do not bring the colours
    elif index.seek_table is not None:
        ways.append(_decode_by_key_packets)
    elif index.trusts_pts and len(index.keyframe_pts_K):
        ways.append(_decode_by_seeking)
    for decode in ways:
        try:
            return decode(path, index, wanted, take)
        except (*READ_ERRORS, UnreadableVideo):
            continue
    try:
        _decode_from_start(path, index, wanted, take)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None


def visit_shown_frames(path: str, numbers: np.ndarray, *, index: VideoIndex, take: Take) -> None:
    """The same with damaged frames, as a decoding from the start shows them: what the decoder made
    of what is left.

    Raises UnreadableVideo when one of them does not come at all.
    """
    try:
        return _visit(path, numbers, index=index, take=take)
    except UnreadableVideo:
        remaining = set(np.asarray(numbers).tolist())
    try:
        container, stream = open_video(path, stream_index=index.stream_index)
        with container:
            for number, frame in enumerate(_frames(container, stream, passes_over=True)):
                if number in remaining:
                    remaining.remove(number)
                    take(number, frame)
                if not remaining:
                    return
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    raise UnreadableVideo(f"frame {min(remaining)} of {index.num_frames} does not decode")


def _decode_packets(path: str, index: VideoIndex, wanted: np.ndarray, take: Take) -> None:
    """Keyframe by keyframe, what the wanted frames depend on: the decoder is emptied at the end of
    each."""
    table = index.packets
    decoder = _open_decoder(table, index)
    missing = set(wanted.tolist())
    with open_file(path) as file:
        for first, last in _packet_ranges(table, wanted):
            for packet in _needed_packets(file, table, first, last, missing):
                _take_wanted(decoder.decode(packet), missing, take)
            _take_wanted(decoder.decode(None), missing, take)
            decoder.flush_buffers()
    if missing:
        raise UnreadableVideo(f"frame {min(missing)} did not come")


def _open_decoder(table: PacketTable, index: VideoIndex) -> av.CodecContext:
    decoder = av.CodecContext.create(table.codec, "r")
    decoder.extradata = table.extradata or None
    # What only the container states would else be lost; what the stream states replaces it.
    decoder.colorspace, decoder.color_range = index.colour_space, index.colour_range
    decoder.thread_count = 1
    decoder.thread_type = "NONE"
    if table.codec == "h264":
        # Without the container it is unknown how far pictures are reordered; a strict decoder
        # assumes the most that the stream's level allows instead of guessing and dropping what
        # comes too late. The pictures are the same.
        decoder.options = {"strict": "1"}
    decoder.open()
    return decoder


def _packet_ranges(table: PacketTable, wanted: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) packet of each keyframe that wanted frames depend on: itself and the last of
    those frames."""
    keyframe_of = np.maximum(np.searchsorted(table.keyframe_number_K, wanted, side="right") - 1, 0)
    beginnings = np.flatnonzero(np.diff(keyframe_of, prepend=-1))
    last = np.maximum.reduceat(table.packet_F[wanted], beginnings)
    return list(zip(table.keyframe_packet_K[keyframe_of[beginnings]].tolist(), last.tolist(), strict=True))


def _needed_packets(file: FileBytes, table: PacketTable, first: int, last: int, wanted: set[int]) -> Iterator[av.Packet]:
    here = slice(first, last + 1)
    columns = (table.number_P, table.is_reference_P, table.offset_P, table.size_P)
    for number, is_reference, offset, size in zip(*(column[here].tolist() for column in columns), strict=True):
        if is_reference or number in wanted:
            # with the zeros behind it that decoders read; bytes handed over have none
            packet = av.Packet(size)
            packet.update(file.pread(size, offset))
            packet.pts = number
            packet.is_keyframe = offset == table.offset_P[first]
            yield packet


def _take_wanted(frames: list[av.VideoFrame], missing: set[int], take: Take) -> None:
    for frame in frames:
        if frame.pts in missing:
            missing.remove(frame.pts)
            _take_sound(frame.pts, frame, take)


def _decode_by_key_packets(path: str, index: VideoIndex, wanted: np.ndarray, take: Take) -> None:
    def take_sound(number: int, frame: av.VideoFrame) -> None:
        _take_sound(number, frame, take)

    missing = read_by_key_packets(lambda: open_video(path, stream_index=index.stream_index), index.seek_table, wanted, take_sound)
    if missing:
        raise UnreadableVideo(f"frame {min(missing)} did not come")


def _take_sound(number: int, frame: av.VideoFrame, take: Take) -> None:
    if frame.is_corrupt:
        raise UnreadableVideo(f"frame {number} is corrupt")
    take(number, frame)


def allowed_range(spec: ClipSpec, index: VideoIndex) -> tuple[int, int]:
    """(first, end) of the numbers of the frames that a clip may use. Raises UnreadableVideo where
    there is none."""
    first, last = 0, index.num_frames
    if spec.first_seconds is not None or spec.last_seconds is not None:
        seconds_F = index.seconds()
        if spec.first_seconds is not None:
            first = int(np.searchsorted(seconds_F, spec.first_seconds - 1e-6))
        if spec.last_seconds is not None:
            last = int(np.searchsorted(seconds_F, spec.last_seconds - 1e-6))
        if last <= first:
            shown = dict(first=float(seconds_F[0]), last=float(seconds_F[-1]), is_before=last == 0)
            raise UnreadableVideo(describe_empty_range(begins=spec.first_seconds or 0.0, ends=spec.last_seconds, **shown))
    return first, last


def _decode_by_seeking(path: str, index: VideoIndex, wanted: np.ndarray, take: Take) -> None:
    container, stream = open_video(path, stream_index=index.stream_index)
    skips = index.codec in SKIPPING_CODECS
    with container:
        if is_palette(index.pixel_format):  # comes with the first packet only
            next(container.demux(stream)).decode()
        for keyframe, numbers in _runs(index, wanted):
            missing = {int(index.pts_F[number]): number for number in numbers}
            last_pts = max(missing)
            container.seek(int(index.keyframe_seek_K[keyframe]), stream=stream, backward=True)
            has_begun = False
            for packet in container.demux(stream):
                # What a container marks as a key sample may be none: decoding begins with the key
                # picture itself.
                has_begun = has_begun or packet.pts == index.keyframe_pts_K[keyframe]
                if not has_begun:
                    continue
                if skips:
                    useful = packet.pts is None or packet.pts in missing
                    stream.codec_context.skip_frame = "DEFAULT" if useful else "NONREF"
                for frame in packet.decode():
                    if frame.pts in missing:
                        _take_sound(missing.pop(frame.pts), frame, take)
                    elif missing and (frame.pts is None or frame.pts > last_pts):
                        raise UnreadableVideo(f"frame {min(missing.values())} did not come")
                if not missing:
                    break
            if missing:
                raise UnreadableVideo(f"frame {min(missing.values())} did not come")


def _runs(index: VideoIndex, wanted: np.ndarray) -> list[tuple[int, list[int]]]:
    """The number of the key picture to begin with, and the wanted frames to decode from there
    on."""
    # A frame belongs to the last keyframe that is not shown after it.
    keyframe_of = np.maximum(np.searchsorted(index.keyframe_pts_K, index.pts_F[wanted], side="right") - 1, 0)
    number_of_K = np.searchsorted(index.pts_F, index.keyframe_pts_K)
    runs: list[tuple[int, list[int]]] = []
    for number, keyframe in zip(wanted.tolist(), keyframe_of, strict=True):
        if not runs or number_of_K[keyframe] - runs[-1][1][-1] > SEEK_FRAMES:
            runs.append((int(keyframe), []))
        runs[-1][1].append(number)
    return runs


def _decode_from_start(path: str, index: VideoIndex, wanted: np.ndarray, take: Take) -> None:
    container, stream = open_video(path, stream_index=index.stream_index)
    remaining = set(wanted.tolist())
    number = -1
    with container:
        for number, frame in enumerate(_frames(container, stream, passes_over=bool(index.doubt))):
            if number in remaining:
                remaining.remove(number)
                _take_sound(number, frame, take)
            if not remaining:
                return
    raise UnreadableVideo(f"frame {min(remaining)} of {index.num_frames} is missing: only {number + 1} decode")


def _frames(container: av.container.InputContainer, stream: av.VideoStream, *, passes_over: bool) -> Iterator[av.VideoFrame]:
    """All frames; `passes_over`: packets that do not decode are none, as when the file was decoded
    for its index."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except FFmpegError:
            if not passes_over:
                raise
