"""ClipSampler -> endless ClipBatches on the device, from clips that threads read ahead.

On a GPU, DALI's pipelines get the bytes of the files, decode them with NVDEC, crop, scale and flip.
Where RandAugment works on whole frames, the pipelines give those, and torch augments, crops and
scales them on the GPU. On a CPU, and for what NVDEC cannot do, the reading threads decode with PyAV
and do all of it themselves: DALI's own CPU decoder knows few codecs, and its CPU resize needs six
times the time of torch's. Training on a CPU needs no DALI at all. One background thread puts the
batches together.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from pydantic import ValidationError

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipBatch
from mats_ds.core.format import format_count
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.batching import BatchBuilder
from mats_ds.data.loading.dali import MAX_GRAPH_THREADS, GpuDecoder, choose_num_graphs, device_codecs, pinned_bytes_bound
from mats_ds.data.loading.prefetch import Closed, ReadOptions, default_workers
from mats_ds.data.manifest import Manifest, read_manifest

STALL_SECONDS = 300.0
JOIN_SECONDS = 3.0


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
        self._session: _Session | None = None
        self._next_epoch = 0

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
        rank: int = 0,
        world_size: int = 1,
        num_workers: int | None = None,
    ) -> ClipLoader:
        """A loader for a training loop of your own: each epoch, a clip of every video in another
        order.

        manifest: a .csv with columns path and label, a list of `path label` lines, or a folder of
        videos; paths are relative to `root`, or to the manifest. batch_size: clips of this rank.
        stride: video frames from one frame of a clip to the next. size: a side in pixels, or
        (height, width). crop_scales: fractions of the shorter side that crops show, one chosen for
        each clip. flip: mirror half of the clips. num_workers: reading threads, None for as many
        as there are cores, 0 for none.

            with ClipLoader.from_manifest("videos.csv", batch_size=8) as loader:
                for batch in loader:                 # one epoch; the next loop is the next one
                    batch.frames_BTHWC, batch.label_B, batch.valid_B

        A video that cannot be read raises nothing: `valid_B` is false where another clip stands in
        for it. Raises ValueError for a manifest that cannot be read and for numbers that do not go
        together.
        """
        height, width = (size, size) if isinstance(size, int) else size
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
        return cls(sampler, split, size=(height, width), device=torch.device(device), options=ReadOptions(num_workers))

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return self.sampler.steps_per_epoch * self.split.accumulation

    def __iter__(self) -> Iterator[ClipBatch]:
        """The micro-batches of one epoch: of the first, then of the next with every new loop."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(epoch)

    def epoch(self, number: int) -> Iterator[ClipBatch]:
        """The micro-batches of that epoch, from 0 on, to resume a training with."""
        return islice(self.micro_batches(number * self.sampler.steps_per_epoch), len(self))

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
        self._session = session = _Session(self, first_step)
        try:
            yield from session.batches()
        finally:
            session.close()

    def describe(self) -> str:
        """One line: what is decoded where, and the bound of page-locked host memory where there is
        any."""
        num_workers, num_graphs = self.options.num_workers, self.options.num_graphs
        readers = format_count(num_workers, "thread") if num_workers else "the calling thread"
        size = "x".join(map(str, self.size))
        codecs = device_codecs(self.device)
        if not codecs:
            return f"PyAV decodes, crops and scales to {size} on {readers}; DALI is not used on a CPU"
        pinned_gib = pinned_bytes_bound(num_graphs, micro_batch=self.split.micro_batch) / 2**30
        return (
            f"NVDEC decodes ({format_count(num_graphs, 'DALI pipeline')}: {', '.join(sorted(codecs))}; "
            "page-locked memory at most "
            f"{pinned_gib:.1f} GiB), PyAV on {readers} what it cannot; crops scaled to {size} on {self.device}"
        )

    def close(self) -> None:
        """End all threads; an iterator in use ends with them."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Session:
    """One run through the data: a BatchBuilder and the thread that runs it ahead of training."""

    def __init__(self, loader: ClipLoader, first_step: int) -> None:
        self._loader = loader
        self._first_step = first_step
        options = loader.options

        def new_decoder(stream: torch.cuda.Stream | None) -> GpuDecoder:
            return GpuDecoder(
                size=loader.size,
                device=loader.device,
                stream=stream,
                num_threads=max(1, min(MAX_GRAPH_THREADS, options.num_workers)),
                whole_frames=loader.sampler.augments,
            )

        self._builder = BatchBuilder(
            loader.sampler,
            split=loader.split,
            size=loader.size,
            device=loader.device,
            options=options,
            codecs=device_codecs(loader.device),
            new_decoder=new_decoder,
        )
        self._stop = threading.Event()
        self._ready: queue.Queue[ClipBatch | BaseException] = queue.Queue(maxsize=options.prefetch)
        self._thread: threading.Thread | None = None
        if options.num_workers:
            # A daemon, ended by close(): the interpreter must be able to end while a read or a
            # driver hangs.
            self._thread = threading.Thread(target=self._produce, name="mats-batches", daemon=True)
            self._thread.start()
        atexit.register(self.close)

    def batches(self) -> Iterator[ClipBatch]:
        """Finished batches, for the consumer's thread."""
        for batch in self._builder.batches(self._first_step) if self._thread is None else self._from_thread():
            if self._loader.device.type == "cuda":
                # The memory was taken on another stream: it must not be used anew before the
                # consumer's stream is through.
                for tensor in (batch.frames_BTHWC, batch.label_B, batch.sample_B, batch.valid_B, batch.seed_B):
                    tensor.record_stream(torch.cuda.current_stream(self._loader.device))
            yield batch

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stop.set()
        self._builder.close()
        if self._thread is not None:
            self._thread.join(timeout=JOIN_SECONDS)
            if self._thread.is_alive():  # a hanging driver: what it uses must stay
                return
        # Not left to the garbage collector: it might come in a forked child, where DALI's threads
        # do not exist.
        self._builder.release()

    def _from_thread(self) -> Iterator[ClipBatch]:
        while not self._stop.is_set():
            try:
                item = self._ready.get(timeout=0.5)
            except queue.Empty:
                self._check_stall()
                continue
            if isinstance(item, BaseException):
                raise item
            yield item

    def _check_stall(self) -> None:
        since = self._builder.decoder_entered_seconds
        limit = max(STALL_SECONDS, 5 * self._loader.options.clip_timeout_seconds)
        if since is not None and time.monotonic() - since > limit:
            raise RuntimeError(f"DALI has not delivered a chunk of clips for {limit:g} s: its video decoder hangs")

    def _produce(self) -> None:
        try:
            if self._loader.device.type == "cuda":
                torch.cuda.set_device(self._loader.device)
            for batch in self._builder.batches(self._first_step):
                if not self._put(batch):
                    return
        except Closed:
            return
        except BaseException as fault:  # raised again in the consumer's thread
            self._put(fault)

    def _put(self, item: ClipBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
