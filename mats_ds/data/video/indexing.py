"""A video file -> VideoIndex: what it really holds, from its packets and its first picture;
containers are not believed.

Frames are those that come when the file is decoded from its start. Where the headers of all coded
pictures prove which packets show a frame and which are key pictures (`stream_proof`), nothing more
is decoded than one picture, for the true size, pixel format and orientation. Any other file is
decoded once (`recording`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.format import Flags

from mats_ds.core.shards.members import stat_file
from mats_ds.data.bitstream.palette import PaletteLog, is_palette
from mats_ds.data.bitstream.stream_proof import StreamProof
from mats_ds.data.video.clock import clock_start, clock_start_of_counted, guessed_delay, slot_times
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, describe_read_error, lacks_frames, open_video
from mats_ds.data.video.faults import explain
from mats_ds.data.video.index import IndexCache, VideoIndex
from mats_ds.data.video.orientation import orientation_of
from mats_ds.data.video.packet_seek import SOUGHT_BY_BYTE, KeyPacket, make_seek_table
from mats_ds.data.video.packets import PacketLog
from mats_ds.data.video.recording import KeyLog, drop_torn_end, find_seek_table, key_packet, record, times_of

_CACHE = IndexCache(max_bytes=64 << 20)


def index_video(path: str) -> VideoIndex:
    """The index of a file; remembered until the file changes, within a fixed number of bytes.

    Raises UnreadableVideo for everything that is wrong with the file; that too is remembered.
    """
    try:
        status = stat_file(path)
    except (OSError, ValueError) as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    if not status.is_regular:  # a pipe would be waited for without end
        raise UnreadableVideo("a directory" if os.path.isdir(path) else "not a regular file")
    identity = (path, status.num_bytes, status.modified_ns, status.place[2])
    known = _CACHE.get(identity)
    if known is None:
        try:
            known = _read_index(path, status.num_bytes)
        except UnreadableVideo as unreadable:
            known = explain(path, unreadable.reason)
        _CACHE.put(identity, known)
    if isinstance(known, str):
        raise UnreadableVideo(known)
    return known


def _read_index(path: str, num_bytes: int) -> VideoIndex:
    if num_bytes == 0:
        raise UnreadableVideo("the file is empty")
    try:
        container, stream = open_video(path)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    with container, PacketLog(path, container, stream) as log:
        scanned = _scan(container, stream, log)
        index = _index_by_headers(path, container, stream, log, scanned)
        if index is None:
            index = _index_by_decoding(path, container, stream, scanned)
        return replace(index, num_bytes=num_bytes)


@dataclass(eq=False)
class _Scan:
    """The facts in the packets of a file. P pieces: packets, or parts of them that hold one
    picture.

    pts_P: None where it has no time. is_key_P: by its header. keys: of packets. problem: the first
    error.
    """

    proof: StreamProof
    pts_P: list[int | None]
    is_shown_P: list[bool]
    is_key_P: list[bool]
    keys: list[KeyPacket]
    slots: list[int | None]  # when the packets that show something are decoded
    palettes: PaletteLog
    late_seconds: Fraction = Fraction(0)
    num_packets: int = 0
    picture: av.VideoFrame | None = None
    problem: str = ""


def _codec_of(stream: av.VideoStream) -> str:
    return stream.codec_context.name.removeprefix("lib").removeprefix("dav1d") or "av1"


def _scan(container: av.container.InputContainer, stream: av.VideoStream, log: PacketLog) -> _Scan:
    codec = _codec_of(stream)
    scan = _Scan(StreamProof(codec, stream), [], [], [], [], [], PaletteLog(codec))
    prove, note_pts, note_shown, note_key = scan.proof.add, scan.pts_P.append, scan.is_shown_P.append, scan.is_key_P.append
    packets, probes = container.demux(stream), True
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:  # the file breaks off: what lies before can be used
            scan.problem = scan.problem or describe_read_error(error)
            break
        if packet is None:
            break
        if scan.picture is None:
            try:
                scan.picture = next(iter(packet.decode()), None)
            except READ_ERRORS as error:
                scan.problem = scan.problem or describe_read_error(error)
        if not packet.size:
            continue
        if not scan.num_packets:
            scan.late_seconds = guessed_delay(container, packet)
        # In most streams no packet has any side data, which is the quickest to ask; in a transport
        # stream every one has some.
        has_new_parameters = False
        if not probes or next(packet.iter_sidedata(), None) is not None:
            probes = not scan.num_packets
            has_new_parameters = packet.has_sidedata("new_extradata")
            if scan.picture is None or is_palette(scan.picture.format.name):
                scan.palettes.add(packet, is_first=not scan.num_packets)
        data = bytes(packet)
        if scan.num_packets and has_new_parameters:
            scan.proof.refuse("parameters change on the way")
        judged = prove(data, is_hidden=packet.is_discard, is_corrupt=packet.is_corrupt)
        log.add(packet, data, judged, has_new_parameters=has_new_parameters)
        pts, shows = packet.pts, not judged
        for piece, is_key in judged:
            note_pts(pts)
            note_shown(piece.is_shown)
            note_key(is_key)
            shows = shows or piece.is_shown
        if shows:
            scan.slots.append(packet.dts)
        if judged and judged[0][1]:
            scan.keys.append(key_packet(scan.num_packets, packet, data))
        scan.num_packets += 1
    return scan


def _index_by_headers(path, container, stream: av.VideoStream, log: PacketLog, scan: _Scan) -> VideoIndex | None:
    """The index of a file whose headers prove its frames; None of any other."""
    if scan.picture is None or not any(scan.is_shown_P):
        return None
    number_P = scan.proof.order(scan.is_shown_P)
    if scan.proof.doubt or number_P is None:
        return None
    packet_F = np.empty(int((number_P >= 0).sum()), np.int64)
    packet_F[number_P[number_P >= 0]] = np.flatnonzero(number_P >= 0)
    if not len(packet_F):
        return None
    stamps = list(map(scan.pts_P.__getitem__, packet_F.tolist()))
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    trusts_pts = not reordered_avi and not scan.proof.is_packed and None not in stamps
    if trusts_pts and not (np.diff(np.asarray(stamps, np.int64)) > 0).all():
        scan.proof.refuse("times do not ascend in the order of the pictures")
        return None
    if trusts_pts and scan.picture.pts != stamps[0]:
        scan.proof.refuse("its first picture does not decode")
        return None
    packets = log.table(number_P)
    is_packet_wise = not scan.proof.is_packed and len(number_P) == scan.num_packets
    seek_table = None
    if packets is None and (not trusts_pts or container.format.name in SOUGHT_BY_BYTE):
        if not is_packet_wise:
            scan.proof.refuse("packets hold several pictures")
            return None
        keys = [replace(key, number=int(number_P[key.packet])) for key in scan.keys if number_P[key.packet] >= 0]
        seek_table = make_seek_table(number_P, keys, container=container.format.name, skips=True)
    pts_F = np.asarray(stamps, np.int64) if trusts_pts else np.arange(len(stamps))
    index = _describe(path, container, stream, scan, scan.picture, pts_F, trusts_pts=trusts_pts)
    # Asked for a keyframe's decoding time, a demuxer that goes by presentation times lands one
    # keyframe too early.
    seek_by_pts = container.format.name.startswith("matroska") or container.format.flags & Flags.seek_to_pts.value > 0
    pts_K, seek_K = [], []
    for key in sorted(scan.keys, key=lambda key: scan.pts_P[key.packet] or 0) if trusts_pts and is_packet_wise else ():
        pts = scan.pts_P[key.packet]
        if pts is not None:
            pts_K.append(pts)
            seek_K.append(pts if seek_by_pts or key.seek is None else key.seek)
    is_whole = is_packet_wise and len(stamps) == scan.num_packets
    return replace(
        index,
        keyframe_pts_K=np.asarray(pts_K, np.int64),
        keyframe_seek_K=np.asarray(seek_K, np.int64),
        plain=trusts_pts and is_whole and len(container.streams.video) == 1 and not index.is_interlaced,
        packets=packets,
        seek_table=seek_table,
        num_stored=len(stamps),
        device_doubt=scan.proof.device_doubt or _why_its_end_is_doubtful(container, stream, scan, index),
    )


def _why_its_end_is_doubtful(container, stream: av.VideoStream, scan: _Scan, index: VideoIndex) -> str:
    """A reason to expect that a decoder without FFmpeg's checks makes up the last frames; "" for
    none. `stream.frames` is 0 where the header does not count them."""
    if scan.problem:
        return "packets that cannot be read"
    if stream.frames not in (0, scan.num_packets):
        return "other frames than its header counts"
    ends = dict(last_seconds=float(index.seconds()[-1]), frame_seconds=index.frame_seconds())
    return "ends before its header says" if lacks_frames(container, stream, **ends) else ""


def _index_by_decoding(path: str, container, stream: av.VideoStream, scan: _Scan) -> VideoIndex:
    """The index of a file whose frames are known only once it is decoded. Raises UnreadableVideo
    where none comes."""
    doubt = scan.proof.doubt or "no picture in its headers"
    if not scan.num_packets:
        raise UnreadableVideo(scan.problem or "no picture in its video stream")
    has_pieces = not scan.proof.is_packed and len(scan.pts_P) == scan.num_packets
    log = KeyLog({number for number, is_key in enumerate(scan.is_key_P) if is_key} if has_pieces else set())

    def open_again():
        return open_video(path, stream_index=stream.index)

    try:
        again, again_stream = open_again()
        with again:
            recorded = record(again, again_stream, checks_pictures=True, on_packet=log.add)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    drop_torn_end(recorded)
    if not recorded.num_frames:
        raise UnreadableVideo(recorded.first_error or scan.problem or "not one picture of it decodes")
    seek_table = find_seek_table(recorded, log, open_again, container=container.format.name)
    pts_F = times_of(recorded)
    trusts_pts = pts_F is not None
    if pts_F is None:
        pts_F = np.arange(recorded.num_frames)
    index = _describe(path, container, stream, scan, recorded.first, pts_F, trusts_pts=trusts_pts)
    key_numbers = seek_table.first_number_K[1:][seek_table.packet_K[1:] >= 0] if seek_table is not None else np.empty(0, np.int64)
    num_shown = sum(scan.is_shown_P[recorded.num_silent :]) if has_pieces else recorded.num_frames
    return replace(
        index,
        keyframe_pts_K=pts_F[key_numbers] if trusts_pts else np.empty(0, np.int64),
        keyframe_seek_K=pts_F[key_numbers] if trusts_pts else np.empty(0, np.int64),
        seek_table=seek_table,
        doubt=doubt,
        is_sound_F=np.asarray(recorded.is_sound_F, bool),
        num_stored=max(num_shown, recorded.num_frames) if recorded.problem else recorded.num_frames,
        num_silent=recorded.num_silent,
        silent_seconds=recorded.num_silent / index.frame_rate,
        is_interlaced=recorded.num_interlaced > 0,
    )


def _describe(
    path, container, stream: av.VideoStream, scan: _Scan, picture: av.VideoFrame, pts_F: np.ndarray, *, trusts_pts
) -> VideoIndex:
    """An index without key pictures."""
    rate = stream.average_rate or stream.guessed_rate
    if trusts_pts:
        start = clock_start(container, pts_F[0].item() * stream.time_base, late_seconds=scan.late_seconds)
    else:
        start = clock_start_of_counted(container, stream)
    return VideoIndex(
        path=path,
        container=container.format.name,
        codec=_codec_of(stream),
        pixel_format=picture.format.name,
        width=picture.width,
        height=picture.height,
        coded_width=stream.codec_context.coded_width,
        coded_height=stream.codec_context.coded_height,
        profile=stream.codec_context.profile or "",
        colour_space=int(picture.colorspace),
        colour_range=int(picture.color_range),
        num_video_streams=len(container.streams.video),
        orientation=orientation_of(picture),
        stream_index=stream.index,
        time_base=stream.time_base,
        frame_rate=float(rate) if rate else 25.0,
        pts_F=pts_F,
        keyframe_pts_K=np.empty(0, np.int64),
        keyframe_seek_K=np.empty(0, np.int64),
        trusts_pts=trusts_pts,
        plain=False,
        is_interlaced=bool(picture.interlaced_frame),
        clock_start=start,
        slot_F=None if trusts_pts else slot_times(container, scan.slots, len(pts_F)),
        from_start=scan.palettes.needs_start(picture),
    )
