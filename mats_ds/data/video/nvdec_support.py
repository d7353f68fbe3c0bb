"""The files that NVDEC may decode, and the reasons to decode the others on the CPU."""

from __future__ import annotations

from mats_ds.data.video.index import VideoIndex

# Smallest and largest picture sides of each codec. Source: NVIDIA Video Codec SDK, NVDEC
# application note, table of limits.
NVDEC_SIDES = {
    "h264": (48, 4096),
    "hevc": (144, 8192),
    "mpeg4": (48, 2032),
    "vp8": (48, 4096),
    "vp9": (128, 8192),
    "av1": (128, 8192),
}
MAX_ENCODED_BYTES = 64 << 20  # of a longer file, PyAV reads only the part that it needs
PIXEL_FORMAT_REASONS = (
    ("10", "10-bit colours"),
    ("12", "12-bit colours"),
    ("yuvj", "full-range colours"),
    ("444", "4:4:4 colours"),
    ("422", "4:2:2 colours"),
)


def device_can_decode(index: VideoIndex) -> bool:
    """Whether a hardware decoder shows the very frames of this file that PyAV shows, as far as its
    index shows."""
    smallest, largest = NVDEC_SIDES.get(index.codec, (1, 0))
    return (
        index.plain
        and index.orientation.is_plain
        and index.pixel_format == "yuv420p"
        and min(index.width, index.height) >= smallest
        and max(index.width, index.height) <= largest
    )


def why_on_cpu(index: VideoIndex, *, num_video_streams: int, num_bytes: int) -> str:
    """The reason that PyAV decodes this file even on a machine with a GPU; "" where NVDEC may take
    it (`device_can_decode`)."""
    smallest, largest = NVDEC_SIDES.get(index.codec, (1, 0))
    if device_can_decode(index):
        return "" if num_bytes <= MAX_ENCODED_BYTES else f"larger than {MAX_ENCODED_BYTES >> 20} MiB"
    if not largest:
        return f"codec {index.codec}"
    if not index.orientation.is_plain:
        return "mirrored" if index.orientation.mirrored else "rotation"
    if index.pixel_format != "yuv420p":
        return next((reason for mark, reason in PIXEL_FORMAT_REASONS if mark in index.pixel_format), index.pixel_format)
    if index.is_interlaced:
        return "interlaced"
    if index.doubt:
        return index.doubt
    if not index.trusts_pts:
        return "AVI with B-frames" if index.container == "avi" else "time stamps missing or double"
    if num_video_streams > 1:
        return "several video streams"
    if not index.plain:
        return "packets that show no frame"
    if min(index.width, index.height) < smallest:
        return f"a side below NVDEC's {smallest} pixels"
    return f"a side above NVDEC's {largest} pixels"
