"""A GPU -> what its NVDEC decodes: codecs, sizes and engines, as the driver answers.

H100 and A100 have no AV1 decoder, a part of a GPU (MIG) has fewer engines, and a container without
the driver's video capability has no decoder at all: none of it follows from the name of the GPU.
So libnvcuvid, the driver's library that DALI decodes with, is asked for every codec, for 8 bits and
4:2:0. Source of the call and of its structure: NVIDIA Video Codec SDK, NVDECODE API, header
cuviddec.h.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mats_ds.data.video.nvdec_support import CodecLimits

LIBRARY = "libnvcuvid.so.1"
CODEC_NUMBERS = {"mpeg4": 2, "h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}  # cudaVideoCodec
CHROMA_420 = 1  # cudaVideoChromaFormat
NO_LIBRARY = (
    f"NVDEC is not used, {LIBRARY} of the NVIDIA driver cannot be loaded: a container needs NVIDIA_DRIVER_CAPABILITIES with "
    "`video` (docker run -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video), a bare machine the driver's decoding library"
)


class _Capabilities(ctypes.Structure):
    """The question (three fields) and the driver's answer; 88 bytes."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("extra_bits", ctypes.c_uint),  # of a colour, beyond 8
        ("unused", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("num_engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("has_histogram", ctypes.c_ubyte),
        ("counter_bits", ctypes.c_ubyte),
        ("max_bins", ctypes.c_ushort),
        ("unused_too", ctypes.c_uint * 10),
    )


@dataclass(frozen=True)
class Nvdec:
    """codecs: limits of each that the GPU decodes, by FFmpeg's name. problem: why it decodes none,
    and what helps, in one line; "" where it does."""

    codecs: Mapping[str, CodecLimits]
    problem: str = ""

    @property
    def num_engines(self) -> int:
        """Engines of the GPU; 0 where the driver does not count them (before 2020)."""
        return max((limits.num_engines for limits in self.codecs.values()), default=0)

    def as_json(self) -> dict[str, Any]:
        return {"codecs": {name: asdict(limits) for name, limits in self.codecs.items()}, "problem": self.problem}


def find_nvdec(device: torch.device) -> Nvdec:
    """What the NVDEC of a CUDA device decodes, asked once a process."""
    return _find(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _find(number: int) -> Nvdec:
    with torch.cuda.device(number):
        torch.zeros(1, device="cuda")  # the driver answers for the context of the calling thread, which this makes
        return ask_driver()


def ask_driver(library: str = LIBRARY) -> Nvdec:
    """The answers of a driver's library; the calling thread must have a CUDA context."""
    try:
        ask = ctypes.CDLL(library).cuvidGetDecoderCaps
    except OSError:
        return Nvdec({}, NO_LIBRARY)
    except AttributeError:
        return Nvdec({}, f"NVDEC is not used, {library} cannot be asked what it decodes: the NVIDIA driver is too old")
    ask.argtypes, ask.restype = (ctypes.POINTER(_Capabilities),), ctypes.c_int
    codecs: dict[str, CodecLimits] = {}
    errors: set[int] = set()
    for name, number in CODEC_NUMBERS.items():
        answer = _Capabilities(codec=number, chroma=CHROMA_420, extra_bits=0)
        if error := ask(ctypes.byref(answer)):
            errors.add(error)
        elif answer.is_supported:
            codecs[name] = CodecLimits(
                smallest=(answer.min_height, answer.min_width),
                largest=(answer.max_height, answer.max_width),
                max_macroblocks=answer.max_macroblocks,
                num_engines=answer.num_engines,
            )
    if codecs:
        return Nvdec(codecs)
    why = f"CUDA error {', '.join(map(str, sorted(errors)))}" if errors else "this GPU decodes none of these codecs"
    return Nvdec({}, f"NVDEC is not used, cuvidGetDecoderCaps of {library} was asked for {', '.join(CODEC_NUMBERS)}: {why}")
