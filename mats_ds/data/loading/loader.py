"""ClipSampler -> endless ClipBatches on the device, from what look-ahead threads bring.

On a GPU, DALI's graphs get the bytes of the files, decode them with NVDEC, crop, scale and flip. Where RandAugment works on
whole frames, the graphs give those, and torch augments, crops and scales them on the GPU. On a CPU, and for what NVDEC
cannot do, the reading threads decode with PyAV and do all of it themselves: DALI's own CPU decoder knows few codecs, and
its CPU resize needs six times the time of torch's. This is the only module that imports nvidia.dali, and only where a graph is
made: training on a CPU needs no DALI at all. One background thread puts the batches together.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Iterator

import torch

from mats_ds.core.clips import ClipBatch
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.loading.batching import BatchBuilder
from mats_ds.data.loading.dali import MAX_GRAPH_THREADS, GpuDecoder, choose_num_graphs, device_codecs, pinned_bytes_bound
from mats_ds.data.loading.prefetch import Closed, default_workers

STALL_SECONDS = 300.0
JOIN_SECONDS = 3.0


class ClipLoader:
    """The micro-batches of one rank, from any step on.

    `accumulation` micro-batches of `micro_batch` clips make this rank's part of a step. `num_workers` None takes as many
    reading threads as this process has cores to itself; 0 reads in the calling thread, without look-ahead or time limit, for
    debugging. `prefetch` micro-batches are kept ready. `num_graphs` is the number of DALI pipelines on a GPU (None: as many as it
    has decoding engines). Nothing that it delivers depends on any of them.
    Raises ValueError for sizes that do not fit the sampler's global batch.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        *,
        rank: int,
        world_size: int,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        height: int,
        width: int,
        num_workers: int | None = None,
        prefetch: int = 2,
        clip_timeout_seconds: float = 60.0,
        num_graphs: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.device = torch.device(device)
        self.height, self.width = height, width
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.prefetch = max(1, prefetch)
        self.clip_timeout_seconds = clip_timeout_seconds
        self.num_graphs = choose_num_graphs(self.device, asked=num_graphs)
        self._split = dict(rank=rank, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
        self.positions(0, 0)  # raises for sizes that do not fit
        if micro_batch % sampler.repeats:
            raise ValueError(
                f"a micro-batch of {micro_batch} clips is no multiple of data.repeats={sampler.repeats}: the clips of a video "
                "would be decoded by several ranks; change data.repeats or the micro-batch"
            )
        self._session: _Session | None = None

    def positions(self, step: int, micro: int) -> range:
        """The sampler's positions of this rank's micro-batch."""
        return self.sampler.positions(step, micro, **self._split)

    def micro_batches(self, first_step: int) -> Iterator[ClipBatch]:
        """All micro-batches from a step on, without end: step by step, and in each step micro-step by micro-step.

        A file that cannot be read raises nothing: a substitute or a blank clip takes its place, and `bad` names it, once an
        epoch (and once more after a restart in mid-epoch). A new iterator ends the one before.
        """
        self.close()
        self._session = session = _Session(self, first_step)
        try:
            yield from session.batches()
        finally:
            session.close()

    def describe(self) -> str:
        """One line: what is decoded where, and the bound of page-locked host memory where there is any."""
        plural = "s" if self.num_workers > 1 else ""
        readers = f"{self.num_workers} thread{plural}" if self.num_workers else "the calling thread"
        size = f"{self.height}x{self.width}"
        codecs = device_codecs(self.device)
        if not codecs:
            return f"PyAV decodes, crops and scales to {size} on {readers}; DALI is not used on a CPU"
        pinned_gib = pinned_bytes_bound(self.num_graphs, micro_batch=self.micro_batch) / 2**30
        return (
            f"NVDEC decodes ({self.num_graphs} DALI pipelines: {', '.join(sorted(codecs))}; page-locked memory at most "
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
    """One run through the data: an assembler and the thread that runs it ahead of training."""

    def __init__(self, loader: ClipLoader, first_step: int) -> None:
        self._loader = loader
        self._first_step = first_step
        device, num_workers = loader.device, loader.num_workers
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None

        def new_graph() -> GpuDecoder:
            return GpuDecoder(
                height=loader.height,
                width=loader.width,
                device=device,
                stream=stream,
                num_threads=max(1, min(MAX_GRAPH_THREADS, num_workers)),
                whole_frames=loader.sampler.augments,
            )

        self._assembler = BatchBuilder(
            loader.sampler,
            positions=loader.positions,
            accumulation=loader.accumulation,
            size=(loader.height, loader.width),
            device=device,
            stream=stream,
            codecs=device_codecs(device),
            new_graph=new_graph,
            num_graphs=loader.num_graphs,
            num_workers=num_workers,
            num_ahead=max(loader.prefetch, -(-2 * num_workers // loader.micro_batch)),
            timeout_seconds=loader.clip_timeout_seconds,
        )
        self._stop = threading.Event()
        self._ready: queue.Queue[ClipBatch | BaseException] = queue.Queue(maxsize=loader.prefetch)
        self._thread: threading.Thread | None = None
        if num_workers:
            # A daemon, ended by close(): the interpreter must be able to end while a read or a driver hangs.
            self._thread = threading.Thread(target=self._produce, name="mats-batches", daemon=True)
            self._thread.start()
        atexit.register(self.close)

    def batches(self) -> Iterator[ClipBatch]:
        """Finished batches, for the consumer's thread."""
        for batch in self._assembler.batches(self._first_step) if self._thread is None else self._from_thread():
            if self._loader.device.type == "cuda":
                # The memory was taken on another stream: it must not be used anew before the consumer's stream is through.
                for tensor in (batch.frames_BTHWC, batch.label_B, batch.sample_B, batch.valid_B, batch.seed_B):
                    tensor.record_stream(torch.cuda.current_stream(self._loader.device))
            yield batch

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stop.set()
        self._assembler.close()
        if self._thread is not None:
            self._thread.join(timeout=JOIN_SECONDS)
            if self._thread.is_alive():  # a hanging driver: what it uses must stay
                return
        # Not left to the garbage collector: it might come in a forked child, where DALI's threads do not exist.
        self._assembler.release()

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
        since = self._assembler.graph_entered_seconds
        limit = max(STALL_SECONDS, 5 * self._loader.clip_timeout_seconds)
        if since is not None and time.monotonic() - since > limit:
            raise RuntimeError(f"DALI has not delivered a chunk of clips for {limit:g} s: its video decoder hangs")

    def _produce(self) -> None:
        try:
            if self._loader.device.type == "cuda":
                torch.cuda.set_device(self._loader.device)
            for batch in self._assembler.batches(self._first_step):
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
