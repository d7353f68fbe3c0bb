"""Encoded clips -> frames on the GPU, decoded by NVDEC through DALI; how many pipelines, and which
codecs they take."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mats_ds.core.gpus import num_engines
from mats_ds.core.storage.package_files import install_command
from mats_ds.data.augment.augmented_crop import AugmentedCrop
from mats_ds.data.loading.batching import MAX_CHUNK_BYTES, MAX_CHUNK_CLIPS
from mats_ds.data.loading.nvdec.limits import find_nvdec
from mats_ds.data.loading.reader import EncodedClip
from mats_ds.data.video.nvdec_support import MAX_ENCODED_BYTES, CodecLimits

MAX_GRAPH_THREADS = 4
MAX_GRAPHS = 16
# Of a GPU that core/gpus.py does not know: even on one engine a second pipeline overlaps its work
# on the host with the first one's decoding.
DEFAULT_GRAPHS = 2
PACKAGES = {"12": "nvidia-dali-cuda120"}  # by the CUDA that torch was built for
NEWEST = "nvidia-dali-cuda130"  # for any other, and a torch without CUDA


def device_codecs(device: torch.device) -> Mapping[str, CodecLimits]:
    """Codecs that the device's own decoder is given, with its limits; none on a CPU, where PyAV is
    faster for every codec."""
    return find_nvdec(device).codecs if device.type == "cuda" else {}


def choose_num_graphs(device: torch.device, *, asked: int | None = None) -> int:
    """DALI pipelines for a device: `asked`, or one for each engine of the GPU, as the driver counts
    them or else by the GPU's name; DEFAULT_GRAPHS where they are not known.

    Raises ValueError when `asked` is not between 1 and MAX_GRAPHS.
    """
    if asked is not None:
        if not 1 <= asked <= MAX_GRAPHS:
            raise ValueError(
                f"the number of DALI pipelines is between 1 and {MAX_GRAPHS}, got {asked}: one for each NVDEC engine"
            )
        return asked
    if device.type != "cuda":
        return DEFAULT_GRAPHS
    counted = min(find_nvdec(device).num_engines, MAX_GRAPHS)
    return counted or num_engines(torch.cuda.get_device_name(device)) or DEFAULT_GRAPHS


def pinned_bytes_bound(num_graphs: int, *, micro_batch: int) -> int:
    """The most bytes of page-locked host memory that DALI's pipelines hold at once.

    A pipeline holds one chunk at a time, and of that only the encoded files lie in host memory;
    pictures are decoded, cropped and scaled on the GPU. A chunk is closed at MAX_CHUNK_CLIPS clips
    or as soon as it exceeds MAX_CHUNK_BYTES, by one file of MAX_ENCODED_BYTES at most. As much
    again is allowed for blocks that DALI's pool keeps. In practice it is far less: eight files of 1
    MB are 8 MB a pipeline.
    """
    chunk_bytes = min(MAX_CHUNK_BYTES + MAX_ENCODED_BYTES, min(micro_batch, MAX_CHUNK_CLIPS) * MAX_ENCODED_BYTES)
    return 2 * num_graphs * chunk_bytes


class GpuDecoder:
    """One DALI pipeline that decodes files, crops, scales and flips; one chunk at a time.

    size: (height, width) of the crops. whole_frames: it only decodes, and each clip's
    `augmentation` makes the crop with torch on the same device.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
        num_threads: int = 1,
        whole_frames: bool = False,
    ) -> None:
        try:
            from nvidia.dali import Pipeline
        except ImportError as error:
            package = PACKAGES.get((torch.version.cuda or "").partition(".")[0], NEWEST)
            raise ValueError(f"NVIDIA DALI cannot be imported ({error}): {install_command(package)}") from None
        on_gpu = device.type == "cuda"
        self.busy = False
        self._stream = stream
        self._whole_frames = whole_frames
        self._augmentations: list[AugmentedCrop] = []
        # Depth 1: a chunk is fed, run and taken before the next one, so that a failure belongs to
        # one chunk for certain. The dynamic executor survives a failure and never reuses the memory
        # of an output that is still referred to.
        self._pipe = Pipeline(
            batch_size=MAX_CHUNK_CLIPS,
            num_threads=num_threads,
            device_id=(torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipe:
            decoder = "mixed" if on_gpu else "cpu"
            self._pipe.set_outputs(decode_files(decoder) if whole_frames else decode_crops(decoder, size=size))
        self._pipe.build()

    def start(self, clips: Sequence[EncodedClip]) -> None:
        """Feed one chunk and set it going; the clips' memory is copied before this returns."""
        self.busy = True
        self._pipe.feed_input("files", [clip.encoded for clip in clips])
        self._pipe.feed_input("numbers", [clip.numbers_T for clip in clips])
        if self._whole_frames:
            # with its arrays, which lie in the memory of a reader that will write to it again
            self._augmentations = [copy.deepcopy(clip.augmentation) for clip in clips]
        else:
            self._pipe.feed_input("start", [np.float32(clip.region.origin) for clip in clips])
            self._pipe.feed_input("end", [np.float32(clip.region.end) for clip in clips])
        self._pipe.schedule_run()

    def finish(self) -> torch.Tensor | list[torch.Tensor]:
        """uint8 frames_THWC of each clip, bound to the decoder's stream. Raises RuntimeError when a
        file cannot be decoded."""
        self.busy = False
        (videos,) = self._pipe.outputs() if self._stream is None else self._pipe.outputs(cuda_stream=self._stream)
        if not self._whole_frames:
            return torch.from_dlpack(videos.as_tensor())
        # Frames of the clips differ in size. One clip after the other: memory for the floats of one
        # at a time.
        rendered = [crop.render(torch.from_dlpack(videos[index])) for index, crop in enumerate(self._augmentations)]
        if self._stream is not None:
            # DALI may use the memory of these frames again once nothing refers to it
            self._stream.synchronize()
        return rendered


def decode_files(decoder: str):
    """The frames `numbers` of `files`, as DALI's "mixed" (NVDEC) or "cpu" decoder shows them."""
    from nvidia.dali import fn, types

    files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
    numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
    # Beyond the last frame the decoder shall fail, not make frames up.
    # Threads pinned to cores would meet those of the other graphs and ranks on the same ones.
    return fn.decoders.video(files, device=decoder, frames=numbers, pad_mode="none", affine=False)


def decode_crops(decoder: str, *, size: tuple[int, int]):
    """The part from `start` to `end` of such frames, scaled."""
    from nvidia.dali import fn, types

    video = decode_files(decoder)
    start, end = (fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("start", "end"))
    return resize_region(video, start=start, end=end, size=size)


def resize_region(video, *, start, end, size: tuple[int, int]):
    """The part of a DALI video from corner `start` to `end` (row, column), scaled; mirrored if it
    ends before it begins."""
    from nvidia.dali import fn, types

    return fn.resize(
        video,
        roi_start=start,
        roi_end=end,
        size=list(size),
        interp_type=types.INTERP_LINEAR,
        antialias=True,  # filters only where it shrinks
    )
