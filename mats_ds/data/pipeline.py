"""ClipSampler -> endless ClipBatches on the device, through DALI: [decode ->] crop and scale -> flip.

Legend: B clips of a micro-batch, T frames, H height, W width, C colours.
Look-ahead threads bring clips in order, either decoded by PyAV or, where the device has a video decoder, as the file's bytes. A
micro-batch is cut into chunks, which go round robin through several DALI graphs; so several hardware decoders are busy at once,
memory for whole pictures stays bounded, and a failure costs one chunk. What comes out is copied into the micro-batch (DALI
hands its buffers over, but a batch made of chunks has to be put together somewhere). One thread does all of this ahead of
training. Frames, order and substitutes depend on the sampler alone, never on threads, chunks or speed.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mats_ds.clips import BadClip, ClipBatch, ClipSpec
from mats_ds.data.lookahead import MAX_ATTEMPTS, LookAhead, Ticket
from mats_ds.data.routes import NVDEC_SIDES, DecodedClip, EncodedClip, read_decoded, read_for_device
from mats_ds.data.sampler import ClipSampler

logger = logging.getLogger(__name__)

CHUNK_CLIPS = 8
# One pipeline keeps one NVDEC engine busy (DALI issue 6387); data-centre GPUs have five to seven.
GPU_PIPELINES = 4
CPU_PIPELINES = 2
MAX_WORKERS = 16
MAX_CODEC_REFUSALS = 3  # chunks of a codec that only PyAV could decode, before all of that codec goes to PyAV
STALL_SECONDS = 300.0


def device_codecs(device: torch.device) -> frozenset[str]:
    """Codecs that the device's own decoder is given; none on a CPU, where PyAV is faster for every codec."""
    return frozenset(NVDEC_SIDES) if device.type == "cuda" else frozenset()


@dataclass(eq=False)
class _Assembly:
    """A micro-batch that is being put together."""

    step: int
    tickets: list[Ticket]
    frames_BTHWC: torch.Tensor
    num_pending: int = 0
    complete: bool = False


@dataclass(eq=False)
class _Load:
    """Clips of one chunk that go through one graph together: the batch they belong to and their places in it."""

    assembly: _Assembly
    places: list[int]
    codecs: list[str]


class _Graph:
    """One DALI pipeline, one chunk in flight. `encoded` graphs decode files, the others take decoded frames."""

    def __init__(self, *, encoded: bool, device: torch.device, stream: Any, height: int, width: int, num_threads: int) -> None:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = device.type == "cuda"
        self._stream = stream
        # Depth 1: a chunk is fed, run and taken before the next is fed, so that a failure belongs to one chunk for certain.
        self._pipe = Pipeline(
            batch_size=CHUNK_CLIPS,
            num_threads=num_threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipe:
            if encoded:
                files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
                numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
                video = fn.decoders.video(files, device="mixed" if on_gpu else "cpu", frames=numbers, pad_mode="none")
            else:
                video = fn.external_source(name="frames", dtype=types.UINT8, ndim=4, layout="FHWC")
                video = video.gpu() if on_gpu else video
            start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
            end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
            flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
            video = fn.resize(
                video, roi_start=start, roi_end=end, size=[height, width], interp_type=types.INTERP_LINEAR, antialias=True
            )
            self._pipe.set_outputs(fn.flip(video, horizontal=flip))
        self._pipe.build()
        self.load: _Load | None = None

    def start(self, load: _Load, clips: Sequence[DecodedClip | EncodedClip]) -> None:
        """Feed one chunk and set it going; the clips' memory is copied before this returns."""
        self.load = load
        if isinstance(clips[0], EncodedClip):
            self._pipe.feed_input("files", [clip.encoded for clip in clips])
            self._pipe.feed_input("numbers", [clip.numbers_T for clip in clips])
        else:
            self._pipe.feed_input("frames", [clip.frames_THWC for clip in clips])
        self._pipe.feed_input("start", [np.float32(clip.region.corners[:2]) for clip in clips])
        self._pipe.feed_input("end", [np.float32(clip.region.corners[2:]) for clip in clips])
        self._pipe.feed_input("flip", [np.asarray(clip.region.flip, np.int32) for clip in clips])
        self._pipe.schedule_run()

    def finish(self) -> _Load:
        """Wait for the chunk and put it into its batch. Raises RuntimeError when DALI could not decode a file of it."""
        load, self.load = self.load, None
        (output,) = self._pipe.outputs() if self._stream is None else self._pipe.outputs(cuda_stream=self._stream)
        for place, frames_THWC in zip(load.places, torch.from_dlpack(output.as_tensor())):
            load.assembly.frames_BTHWC[place].copy_(frames_THWC)
        if self._stream is not None:
            self._stream.synchronize()  # DALI may use its buffer again once nothing refers to it
        return load


class ClipLoader:
    """The micro-batches of one rank, from any step on.

    `accumulation` micro-batches of `micro_batch` clips make this rank's part of a step. `num_workers` None takes as many
    reading threads as this process has cores to itself; 0 reads in the calling thread, without look-ahead and time limit, to
    debug. `prefetch` micro-batches are kept ready. Nothing that it delivers depends on either.
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
    ) -> None:
        self.sampler = sampler
        self.device = torch.device(device)
        self.height, self.width = height, width
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.prefetch = prefetch
        self.clip_timeout_seconds = clip_timeout_seconds
        self._split = dict(rank=rank, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
        self.positions(0, 0)  # raises for sizes that do not fit
        self._session: _Session | None = None

    def positions(self, step: int, micro: int) -> range:
        """The sampler's positions of this rank's micro-batch."""
        return self.sampler.positions(step, micro, **self._split)

    def micro_batches(self, first_step: int) -> Iterator[ClipBatch]:
        """All micro-batches from a step on, without end: step by step, and in each step micro-step by micro-step.

        A file that cannot be read raises nothing: a substitute or a blank clip takes its place, and `bad` names it, once an
        epoch (and once more after a restart in mid-epoch). Only one iterator is alive at a time: a new one ends the one before.
        """
        self.close()
        self._session = session = _Session(self, first_step)
        try:
            yield from session.batches()
        finally:
            session.close()

    def describe(self) -> str:
        """One line: what is decoded where."""
        where = f"crops and scales to {self.height} x {self.width} on {self.device}"
        readers = f"{self.num_workers} threads" if self.num_workers else "the training thread"
        if device_codecs(self.device):
            return (
                f"{GPU_PIPELINES} DALI pipelines decode on {self.device} (NVDEC: {', '.join(sorted(device_codecs(self.device)))}), "
                f"PyAV on {readers} the rest; DALI {where}"
            )
        return f"PyAV decodes on {readers}, DALI {where}"

    def close(self) -> None:
        """End all threads; the iterator in use ends with them."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Session:
    """One run through the data: the reading threads, the graphs, and the thread that puts batches together."""

    def __init__(self, loader: ClipLoader, first_step: int) -> None:
        self._loader = loader
        self._first_step = first_step
        self._codecs = device_codecs(loader.device)
        self._refusals: Counter[str] = Counter()
        self._on_gpu = loader.device.type == "cuda"
        self._stream = torch.cuda.Stream(loader.device) if self._on_gpu else None
        self._graphs: dict[bool, deque[_Graph]] = {}
        self._in_flight: deque[_Graph] = deque()
        self._assemblies: deque[_Assembly] = deque()
        self._named: tuple[int, set[str]] = (-1, set())
        self._waiting_for_dali: float | None = None
        self._stop = threading.Event()
        self._ready: queue.Queue[ClipBatch | BaseException] = queue.Queue(maxsize=loader.prefetch)
        self._lookahead = LookAhead(
            self._read,
            draw=loader.sampler.spec,
            num_workers=loader.num_workers,
            timeout_seconds=loader.clip_timeout_seconds,
        )
        self._thread: threading.Thread | None = None
        if loader.num_workers:
            self._thread = threading.Thread(target=self._produce, name="mats-batches", daemon=True)
            self._thread.start()
        atexit.register(self.close)

    def batches(self) -> Iterator[ClipBatch]:
        """Finished batches, as the consumer's thread sees them."""
        if self._thread is None:
            yield from self._assemble()
            return
        while True:
            try:
                item = self._ready.get(timeout=1.0)
            except queue.Empty:
                if self._stop.is_set():
                    return
                self._check_stall()
                continue
            if isinstance(item, BaseException):
                raise item
            if self._on_gpu:
                # The memory was taken on another stream: it must not be used anew before the consumer's stream is through.
                for tensor in (item.frames_BTHWC, item.label_B, item.sample_B, item.valid_B, item.key_B):
                    tensor.record_stream(torch.cuda.current_stream(self._loader.device))
            yield item

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stop.set()
        self._lookahead.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _check_stall(self) -> None:
        since = self._waiting_for_dali
        limit = max(STALL_SECONDS, 5 * self._loader.clip_timeout_seconds)
        if since is not None and time.monotonic() - since > limit:
            raise RuntimeError(f"DALI has not delivered a chunk of clips for {limit:g} s: its decoder hangs")

    def _read(self, spec: ClipSpec, on_cpu: bool) -> DecodedClip | EncodedClip:
        return read_decoded(spec) if on_cpu or not self._codecs else read_for_device(spec, codecs=self._codecs)

    def _produce(self) -> None:
        try:
            if self._on_gpu:
                torch.cuda.set_device(self._loader.device)
            for batch in self._assemble():
                if not self._put(batch):
                    return
        except InterruptedError:  # closed while waiting for a clip
            return
        except BaseException as fault:  # the consumer's thread raises it
            self._put(fault)

    def _put(self, item: ClipBatch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def _assemble(self) -> Iterator[ClipBatch]:
        """Batches in order, as their chunks come out of the graphs."""
        loader = self._loader
        depth = max(loader.prefetch, -(-2 * loader.num_workers // loader.micro_batch))
        plans = ((step, micro) for step in itertools.count(self._first_step) for micro in range(loader.accumulation))
        ahead: deque[tuple[int, list[Ticket]]] = deque()
        while not self._stop.is_set():
            while len(ahead) < depth:
                step, micro = next(plans)
                ahead.append((step, [self._lookahead.ask(position) for position in loader.positions(step, micro)]))
            step, tickets = ahead.popleft()
            with torch.cuda.stream(self._stream):
                assembly = _Assembly(step, tickets, self._blank(len(tickets)))
                self._assemblies.append(assembly)
                for begin in range(0, len(tickets), CHUNK_CLIPS):
                    places = range(begin, min(begin + CHUNK_CLIPS, len(tickets)))
                    if not self._lookahead.is_ready([tickets[place] for place in places]):
                        while self._in_flight:  # nothing to feed yet: let finished work out meanwhile
                            self._finish_oldest()
                        yield from self._completed()
                    self._dispatch(assembly, places)
                assembly.complete = True
                yield from self._completed()

    def _blank(self, num_clips: int) -> torch.Tensor:
        loader = self._loader
        shape = (num_clips, loader.sampler.num_frames, loader.height, loader.width, 3)
        return torch.zeros(shape, dtype=torch.uint8, device=loader.device)

    def _dispatch(self, assembly: _Assembly, places: Sequence[int]) -> None:
        """Wait for the clips of a chunk and feed them: the encoded ones to one graph, the decoded ones to another."""
        clips = {place: self._lookahead.wait(assembly.tickets[place]).clip for place in places}
        for kind in (EncodedClip, DecodedClip):
            members = [place for place in places if isinstance(clips[place], kind)]
            if members:
                graph = self._free_graph(encoded=kind is EncodedClip)
                load = _Load(assembly, members, [getattr(clips[place], "codec", "") for place in members])
                assembly.num_pending += 1
                self._in_flight.append(graph)
                graph.start(load, [clips[place] for place in members])
        for place in places:
            self._lookahead.release(assembly.tickets[place])

    def _free_graph(self, *, encoded: bool) -> _Graph:
        graphs = self._graphs.setdefault(encoded, deque())
        if len(graphs) < (GPU_PIPELINES if self._on_gpu and encoded else CPU_PIPELINES):
            graphs.appendleft(self._new_graph(encoded=encoded))
        graph = graphs[0]
        graphs.rotate(-1)
        while graph.load is not None:
            self._finish_oldest()
        return graph

    def _new_graph(self, *, encoded: bool) -> _Graph:
        loader = self._loader
        num_threads = max(1, min(4, loader.num_workers))
        return _Graph(
            encoded=encoded,
            device=loader.device,
            stream=self._stream,
            height=loader.height,
            width=loader.width,
            num_threads=num_threads,
        )

    def _finish_oldest(self) -> None:
        graph = self._in_flight.popleft()
        load = graph.load
        self._waiting_for_dali = time.monotonic()
        try:
            graph.finish()
        except RuntimeError as error:
            if not load.codecs[0]:
                raise  # crop and scale of decoded frames have no reason to fail
            self._decode_instead(load, error)
        finally:
            self._waiting_for_dali = None
        load.assembly.num_pending -= 1

    def _decode_instead(self, load: _Load, error: RuntimeError) -> None:
        """Send a chunk that the device could not decode through PyAV, which also finds out which file is to blame."""
        logger.warning("the device's decoder refused a chunk of clips, PyAV decodes it instead: %s", str(error).split("\n")[0])
        old = [load.assembly.tickets[place] for place in load.places]
        asked = [
            self._lookahead.ask(ticket.position, attempt=ticket.attempt, on_cpu=True, first=True) for ticket in reversed(old)
        ][::-1]
        graph = self._new_graph(encoded=False)
        for before, place, ticket in zip(old, load.places, asked):
            self._lookahead.wait(ticket)
            ticket.failures[:0] = before.failures
            load.assembly.tickets[place] = ticket
            if ticket.clip is not None:
                graph.start(_Load(load.assembly, [place], [""]), [ticket.clip])
                graph.finish()
            self._lookahead.release(ticket)
        if all(ticket.attempt == before.attempt for ticket, before in zip(asked, old)):
            for codec in set(load.codecs):
                self._refusals[codec] += 1
                if self._refusals[codec] == MAX_CODEC_REFUSALS:
                    self._codecs -= {codec}
                    logger.warning("%s goes to PyAV from now on: the device refuses it", codec)

    def _completed(self) -> Iterator[ClipBatch]:
        while self._assemblies and self._assemblies[0].complete and not self._assemblies[0].num_pending:
            yield self._to_batch(self._assemblies.popleft())

    def _to_batch(self, assembly: _Assembly) -> ClipBatch:
        sampler, device = self._loader.sampler, self._loader.device
        tickets = assembly.tickets
        firsts = [sampler.spec(ticket.position) for ticket in tickets]
        blank = [ticket.attempt >= MAX_ATTEMPTS for ticket in tickets]
        used = [first if is_blank else ticket.spec for first, ticket, is_blank in zip(firsts, tickets, blank)]
        batch = ClipBatch(
            frames_BTHWC=assembly.frames_BTHWC,
            label_B=torch.tensor([spec.label for spec in used]).to(device),
            sample_B=torch.tensor([spec.sample for spec in used]).to(device),
            valid_B=torch.tensor([ticket.attempt == 0 for ticket in tickets]).to(device),
            key_B=torch.tensor([spec.key for spec in firsts]).to(device),
            bad=self._name_bad(tickets),
            paths=tuple("" if is_blank else spec.path for spec, is_blank in zip(used, blank)),
        )
        if self._stream is not None:
            self._stream.synchronize()
        return batch

    def _name_bad(self, tickets: Sequence[Ticket]) -> tuple[BadClip, ...]:
        """The unreadable files of a batch that this epoch has not named yet, in the order of the clips."""
        epoch = self._loader.sampler.epoch(tickets[0].position)
        if epoch != self._named[0]:
            self._named = (epoch, set())
        fresh = []
        for failure in (failure for ticket in tickets for failure in ticket.failures):
            if failure.path not in self._named[1]:
                self._named[1].add(failure.path)
                fresh.append(failure)
        return tuple(fresh)
