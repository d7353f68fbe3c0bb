"""ClipSampler -> endless ClipBatches on the device, from clips that processes read ahead.

On a GPU, DALI's pipelines get the bytes of the files, decode them with NVDEC, crop, scale and flip.
Where RandAugment works on whole frames, the pipelines give those, and torch augments, crops and
scales them on the GPU. On a CPU, and for what NVDEC cannot do, the reading processes decode with
PyAV and do all of it themselves: DALI's own CPU decoder knows few codecs, and its CPU resize needs
six times the time of torch's. Training on a CPU needs no DALI at all. One background thread puts
the batches together.

(Over 300 lines: ClipLoader is one public class, with what its docstrings promise.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipBatch
from mats_ds.core.format import format_count
from mats_ds.core.workers import default_workers
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.batching import BatchBuilder
from mats_ds.data.loading.dali import MAX_GRAPH_THREADS, GpuDecoder, choose_num_graphs, device_codecs, pinned_bytes_bound
from mats_ds.data.loading.nvdec.limits import find_nvdec
from mats_ds.data.loading.nvdec.route import Route, decoding_facts, survey_route
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.loading.session import LoadingSession
from mats_ds.data.loading.template import get_template
from mats_ds.data.manifest import Manifest, read_manifest


class ClipLoader:
    """The micro-batches of one rank, from any step on.

    split: which part of a step this rank reads, in which micro-batches. size: (height, width) of
    the frames. Nothing that it delivers depends on `options`.
    Raises ValueError for a split that does not fit the sampler's global batch.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        split: BatchSplit,
        *,
        size: tuple[int, int],
        device: torch.device,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.sampler = sampler
        self.split = split
        self.size = size
        self.device = torch.device(device)
        self.options = replace(
            options,
            num_workers=default_workers() if options.num_workers is None else options.num_workers,
            prefetch=max(1, options.prefetch),
            num_graphs=choose_num_graphs(self.device, asked=options.num_graphs),
        )
        self.positions(0, 0)  # raises for sizes that do not fit
        if split.micro_batch % sampler.repeats:
            raise ValueError(
                f"a micro-batch of {format_count(split.micro_batch, 'clip')} is no multiple of "
                f"data.repeats={sampler.repeats}: the clips of a "
                "video would be decoded by several ranks; change data.repeats or the micro-batch"
            )
        if self.options.num_workers:
            get_template()  # imports what the readers need while the model is made
        self._session: LoadingSession | None = None
        self._next_epoch = 0
        self._follows_process_group = False

    @classmethod
    def from_manifest(
        cls,
        manifest: str | os.PathLike[str] | Manifest,
        *,
        batch_size: int,
        num_frames: int = 16,
        stride: int = 4,
        size: int | tuple[int, int] = 224,
        crop_scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        root: str | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int | None = None,
    ) -> ClipLoader:
        """A loader for a training loop of your own: each epoch, a clip of every video in another
        order.

        manifest: a .csv with columns path and label, a list of `path label` lines, or a folder of
        videos; paths are relative to `root`, or to the manifest. batch_size: clips of this rank.
        num_frames, stride: frames of a clip, and video frames from one of them to the next. size:
        a side in pixels, or (height, width). crop_scales: fractions of the shorter side that crops
        show, one chosen for each clip. flip: mirror half of the clips. seed: the same one gives the
        same clips in the same order, whatever `num_workers` is. device: where the batches are; on
        a CUDA device NVDEC decodes. rank, world_size: this process among those that train; each
        reads its own part of every global batch of batch_size * world_size clips. Without them
        they are those of torch.distributed whenever a loop begins, so that DistributedDataParallel
        and Lightning need nothing here; without a process group, 0 of 1. Give both where not every
        rank reads videos of its own, as with tensor parallelism. num_workers: reading processes,
        None for as many as there are cores, 0 for none; they import nothing of your program, which
        needs no main guard.

            with ClipLoader.from_manifest("videos.csv", batch_size=8) as loader:
                for batch in loader:                 # one epoch; the next loop is the next one
                    batch.frames_BTHWC, batch.label_B, batch.valid_B

        `len(loader)` batches are an epoch, all of `batch_size` clips: what does not fill a last
        global batch is left out of this epoch (a set smaller than one global batch goes round).
        frames_BTHWC is uint8 RGB [B, num_frames, height, width, 3]; label_B (-1 without labels) and
        sample_B, the row of the manifest, are int64 [B]. One loop at a time: a second loop over the
        same loader ends the first. Leaving a loop early is allowed; `with`, or `close()`, ends the
        processes.

        A video that cannot be read raises nothing: `valid_B` is false where another clip stands in
        for it, and `bad` says why. Raises ValueError for a manifest that cannot be read and for
        numbers that do not go together.
        """
        height, width = check_size(size)
        follows = rank is None and world_size is None
        if follows:
            rank, world_size = find_rank()
        elif rank is None or world_size is None:
            raise ValueError(
                f"rank and world_size go together, got rank={rank} and world_size={world_size}: give both, or neither for those "
                "of torch.distributed"
            )
        for name, value in (("batch_size", batch_size), ("world_size", world_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
        try:
            section = ClipSection(
                num_frames=num_frames,
                stride=stride,
                height=height,
                width=width,
                tubelet=(1, max(1, height), max(1, width)),  # no tokens here: any size divides
                crop_scales=crop_scales,
                flip=flip,
            )
        except ValidationError as error:
            problems = ((problem["loc"], problem["msg"].removeprefix("Value error, ")) for problem in error.errors())
            raise ValueError("; ".join(": ".join([*map(str, where[:1]), message]) for where, message in problems)) from None
        videos = manifest if isinstance(manifest, Manifest) else read_manifest(manifest, root=root)
        sampler = ClipSampler(videos, recipe_clip=section, num_frames=num_frames, global_batch=batch_size * world_size, seed=seed)
        split = BatchSplit(rank, world_size, batch_size)
        loader = cls(sampler, split, size=(height, width), device=torch.device(device), options=ReadOptions(num_workers))
        loader._follows_process_group = follows
        return loader

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        self._follow_process_group()
        return self.sampler.steps_per_epoch * self.split.accumulation

    def __iter__(self) -> Iterator[ClipBatch]:
        """The micro-batches of one epoch: of the first, then of the next with every new loop."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1  # when the first batch is asked for
        yield from self.epoch(epoch)

    def set_epoch(self, number: int) -> None:
        """Let the next loop be that epoch, counted from 0: for a training that is resumed."""
        if number < 0:
            raise ValueError(f"epochs count from 0, got {number}")
        self._next_epoch = number

    def epoch(self, number: int) -> Iterator[ClipBatch]:
        """The micro-batches of that epoch, from 0 on, to resume a training with.

        The iterator raises RuntimeError where another loop or `close` has ended it before its last
        batch.
        """
        if number < 0:
            raise ValueError(f"epochs count from 0, got {number}")
        return self._batches_of_epoch(number)

    def _batches_of_epoch(self, number: int) -> Iterator[ClipBatch]:
        delivered, wanted = 0, len(self)
        with closing(self.micro_batches(number * self.sampler.steps_per_epoch)) as batches:
            for batch in islice(batches, wanted):
                delivered += 1
                yield batch
        if delivered < wanted:
            raise RuntimeError(
                f"this loop got {delivered} of the {wanted} batches of its epoch: another loop over the same ClipLoader, or "
                "close(), ended it; one loader serves one loop at a time, make a second one for a loop inside a loop"
            )

    def _follow_process_group(self) -> None:
        """Read the part of this rank of torch.distributed, unless it was said whose: Lightning and
        DeepSpeed start the process group long after the loader is made."""
        if not self._follows_process_group:
            return
        rank, world_size = find_rank()
        if (rank, world_size) != (self.split.rank, self.split.world_size):
            self.split = replace(self.split, rank=rank, world_size=world_size)
            self.sampler = self.sampler.with_global_batch(self.split.micro_batch * self.split.accumulation * world_size)

    @property
    def num_graphs(self) -> int:
        """DALI pipelines on a GPU."""
        return self.options.num_graphs

    def positions(self, step: int, micro: int) -> range:
        """The sampler's positions of this rank's micro-batch."""
        return self.split.positions(step, micro, global_batch=self.sampler.global_batch)

    def micro_batches(self, first_step: int) -> Iterator[ClipBatch]:
        """All micro-batches from a step on, without end: step by step, and in each step micro-step
        by micro-step.

        A file that cannot be read raises nothing: a substitute or a blank clip stands in for it,
        and `bad` names it, once an epoch (and once more after a restart in mid-epoch). A new
        iterator ends the one before.
        """
        self.close()
        self._session = session = LoadingSession(
            self._new_builder(), first_step=first_step, device=self.device, options=self.options
        )
        try:
            yield from session.batches()
        finally:
            session.close()

    def _new_builder(self) -> BatchBuilder:
        def new_decoder(stream: torch.cuda.Stream | None) -> GpuDecoder:
            return GpuDecoder(
                size=self.size,
                device=self.device,
                stream=stream,
                num_threads=max(1, min(MAX_GRAPH_THREADS, self.options.num_workers)),
                whole_frames=self.sampler.augments,
            )

        return BatchBuilder(
            self.sampler,
            split=self.split,
            size=self.size,
            device=self.device,
            options=self.options,
            codecs=device_codecs(self.device),
            new_decoder=new_decoder,
        )

    def describe(self) -> str:
        """One line: what is decoded where, and on a GPU how many files of a sample go to NVDEC, why
        the others do not, and the bound of page-locked host memory."""
        num_workers, num_graphs = self.options.num_workers, self.options.num_graphs
        readers = format_count(num_workers, "process") if num_workers else "the calling thread"
        size, codecs = "x".join(map(str, self.size)), device_codecs(self.device)
        if not codecs:
            why = find_nvdec(self.device).problem if self.device.type == "cuda" else "DALI is not used on a CPU"
            return f"PyAV decodes, crops and scales to {size} on {readers}; {why}"
        pinned_gib = pinned_bytes_bound(num_graphs, micro_batch=self.split.micro_batch) / 2**30
        return (
            f"NVDEC decodes ({format_count(num_graphs, 'DALI pipeline')}: {', '.join(sorted(codecs))}; page-locked memory at "
            f"most {pinned_gib:.1f} GiB), PyAV on {readers} what it cannot; crops scaled to {size} on {self.device}"
            f"; route: {self._route.describe()}"
        )

    def decoding(self) -> dict[str, Any]:
        """What decodes, for the record of a run."""
        return decoding_facts(self.device, num_pipelines=self.num_graphs, route=lambda: self._route)

    @functools.cached_property
    def _route(self) -> Route:
        return survey_route(self.sampler.manifest.paths, device_codecs(self.device))

    def close(self) -> None:
        """End all processes; an iterator in use ends with them."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_rank() -> tuple[int, int]:
    """(rank, number of ranks) in torch.distributed; 0 of 1 where it has no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width). Raises ValueError for what is neither a side nor two."""
    sides = (size, size) if isinstance(size, int) else size
    if not (isinstance(sides, (tuple, list)) and len(sides) == 2 and all(isinstance(side, int) for side in sides)):
        raise ValueError(f"size is a side in pixels or (height, width), got {size!r}")
    return sides[0], sides[1]
