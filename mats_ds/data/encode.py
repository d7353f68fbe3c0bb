"""Frames -> a video file with nothing random in it: the same frames and settings give the same
bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mats_ds.data.video.containers import file_url

CONSTANT_QUALITY = ("libx264", "libvpx-vp9")  # the others need a bit rate
# libx264's macroblock tree chooses by what else lies in memory: with it, equal frames gave other
# bytes in another process, and even from one call to the next.
REPEATABLE = {"libx264": {"mbtree": "0"}}
SPARE_BIT_RATE = 2_000_000


def encode_frames(
    path: Path, frames: Iterable[np.ndarray], *, encoder: str, options: Mapping[str, str], gop_frames: int, rate: int = 25
) -> None:
    """Write frames, uint8 RGB [H, W, 3] of equal even sides, with one of FFmpeg's encoders; the
    suffix chooses the container. Options count for encoders of constant quality, the others get a
    bit rate.
    """
    # without random identifiers and versions in the headers
    with av.open(file_url(path), "w", options={"fflags": "+bitexact"}) as container:
        has_quality = encoder in CONSTANT_QUALITY
        chosen = {**options, **REPEATABLE.get(encoder, {})} if has_quality else {}
        stream = container.add_stream(encoder, rate=Fraction(rate), options=chosen)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop_frames
        stream.codec_context.thread_count = 1
        if not has_quality:
            stream.codec_context.bit_rate = SPARE_BIT_RATE
        for number, frame_HWC in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame_HWC.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
