"""VideoIndex -> whether NVDEC, driven by DALI, may decode the file, and if not, why: one judgement
for the loader, for `prepare check` and for `video_facts`.

A file goes to NVDEC only where both decoders give the same frames under the same numbers. Some of
the conditions are NVDEC's own (codec, profile, sizes). The others come from how DALI uses it, as
its sources have it:

- It keeps decoders for later files and finds them by the coded size, but a kept one still cuts out
  the picture size of its first file: a picture of 340 x 256 after one of 352 x 256, both coded as
  352 x 256, comes out with shifted colours and without an error. A picture that is smaller than
  its coded size also makes a new decoder for every clip. Hence sides that are multiples of 16, and
  equal to those that are coded.
- It converts colours by BT.601, whatever the file says. PyAV follows the file; where that says
  nothing, libswscale takes BT.601 at every size, HD included. Hence BT.601 or no statement.
- It refuses interlaced pictures, ignores rotation, passes over packets with negative times, keeps
  times in 32 bits, and hands out whatever lies in memory where a file ends early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mats_ds.data.video.index import VideoIndex

SIDE_MULTIPLE = 16  # of both sides of a picture that goes to NVDEC
MAX_ENCODED_BYTES = 64 << 20  # of a longer file, PyAV reads only the part that it needs
MAX_PTS = 2**31 - 1
CONTAINERS = ("mov,mp4", "matroska", "avi")  # that DALI's demuxer was seen to read; FLV it does not
# FFmpeg's names, "" where it has none
PROFILES = {
    "h264": ("Constrained Baseline", "Baseline", "Main", "High", "Constrained High", "Progressive High"),
    "hevc": ("Main", "Main Still Picture"),
    "mpeg4": ("Simple Profile", "Advanced Simple Profile"),
    "vp8": ("",),
    "vp9": ("Profile 0",),
    "av1": ("Main",),
}
# FFmpeg's numbers of colour spaces, those of ITU-T H.273: not stated, BT.470BG, SMPTE 170M
BT601 = (2, 5, 6)
COLOUR_SPACES = {1: "BT.709", 4: "FCC", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
FULL_RANGE = 2  # FFmpeg's number
PIXEL_FORMAT_REASONS = (
    ("10", "10-bit colours"),
    ("12", "12-bit colours"),
    ("yuvj", "full-range colours"),
    ("444", "4:4:4 colours"),
    ("422", "4:2:2 colours"),
)


@dataclass(frozen=True)
class CodecLimits:
    """What a GPU decodes of one codec: (height, width) of the smallest and the largest picture, and
    its most macroblocks (16 x 16 pixels). num_engines: that decode it, 0 where it is not known."""

    smallest: tuple[int, int]
    largest: tuple[int, int]
    max_macroblocks: int
    num_engines: int = 0


def _square(smallest: int, largest: int) -> CodecLimits:
    return CodecLimits((smallest, smallest), (largest, largest), (largest // 16) ** 2)


# Where no GPU was asked (nvdec_limits.py). Source: NVIDIA Video Codec SDK, NVDEC application note,
# table of limits.
NVDEC_LIMITS: Mapping[str, CodecLimits] = {
    "h264": _square(48, 4096),
    "hevc": _square(144, 8192),
    "mpeg4": _square(48, 2032),
    "vp8": _square(48, 4096),
    "vp9": _square(128, 8192),
    "av1": _square(128, 8192),
}


def device_can_decode(index: VideoIndex, codecs: Mapping[str, CodecLimits] = NVDEC_LIMITS) -> bool:
    """Whether a hardware decoder of these codecs gives the very frames of this file that PyAV
    gives, as far as its index shows."""
    return not why_on_cpu(index, codecs)


def why_on_cpu(index: VideoIndex, codecs: Mapping[str, CodecLimits] = NVDEC_LIMITS) -> str:
    """The reason that PyAV decodes this file even on a machine with a GPU, in a few words that are
    the same for all such files; "" where NVDEC may take it."""
    limits = codecs.get(index.codec)
    if limits is None:
        known = index.codec in NVDEC_LIMITS
        return f"this GPU does not decode {index.codec}" if known else f"codec {index.codec}"
    return (
        _why_not_this_picture(index)
        or _why_not_these_numbers(index)
        or _why_not_this_size(index, limits)
        or (f"larger than {MAX_ENCODED_BYTES >> 20} MiB" if index.num_bytes > MAX_ENCODED_BYTES else "")
    )


def _why_not_this_picture(index: VideoIndex) -> str:
    """The pixels of a frame would differ."""
    if not index.orientation.is_plain:
        return "mirrored" if index.orientation.mirrored else "rotation"
    if index.pixel_format != "yuv420p":
        return next((reason for mark, reason in PIXEL_FORMAT_REASONS if mark in index.pixel_format), index.pixel_format)
    if index.colour_range == FULL_RANGE:
        return "full-range colours"
    if index.colour_space not in BT601:
        return f"{COLOUR_SPACES.get(index.colour_space, 'other')} colours"
    if index.is_interlaced:
        return "interlaced"
    if index.profile not in PROFILES.get(index.codec, ()):
        return f"profile {index.profile or 'unknown'}"
    return ""


def _why_not_these_numbers(index: VideoIndex) -> str:
    """A number would mean another frame, or none."""
    if index.doubt:
        return index.doubt
    if not index.container.startswith(CONTAINERS):
        return f"container {index.container.partition(',')[0]}"
    if not index.trusts_pts:
        return "AVI with B-frames" if index.container == "avi" else "time stamps missing or double"
    if index.num_video_streams > 1:
        return "several video streams"
    if not index.plain:
        return "packets that show no frame"
    if index.device_doubt:
        return index.device_doubt
    if index.pts_F[0] < 0:
        return "time stamps below 0"
    return "time stamps beyond 31 bits" if index.pts_F[-1] > MAX_PTS else ""


def _why_not_this_size(index: VideoIndex, limits: CodecLimits) -> str:
    size = index.height, index.width
    for side, least, most in zip(size, limits.smallest, limits.largest, strict=True):
        if side < least:
            return f"a side below NVDEC's {least} pixels"
        if side > most:
            return f"a side above NVDEC's {most} pixels"
    if any(side % SIDE_MULTIPLE for side in size):
        return f"sides that are no multiples of {SIDE_MULTIPLE}"
    if (index.coded_height, index.coded_width) != size:
        return "pictures cut out of larger ones"
    if index.height * index.width // 256 > limits.max_macroblocks:
        return f"more than NVDEC's {limits.max_macroblocks:,} macroblocks"
    return ""
