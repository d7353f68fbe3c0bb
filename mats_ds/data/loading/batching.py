"""Clips that come from the look-ahead -> micro-batches on the device, in order.

Legend: B clips of a micro-batch, T frames, H height, W width, C colours.
What PyAV decoded is copied to its place. What the device decodes is cut into chunks, which go round robin through several
graphs that decode, crop and scale: so several hardware decoders are busy at once, memory for whole files and pictures stays
bounded, and a failure costs one chunk. Frames, order and substitutes depend on the sampler alone, never on threads, chunks or
speed. This module knows a graph only by what it does (`Graph`), not that it is DALI's.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mats_ds.core.clips import BadClip, ClipBatch, ClipSpec
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.loading.prefetch import MAX_ATTEMPTS, ClipPrefetcher, ReadRequest
from mats_ds.data.loading.reader import DecodedClip, EncodedClip, SharedDecoder, read_decoded, read_for_device, read_together

logger = logging.getLogger(__name__)

MAX_CHUNK_CLIPS = 8
MAX_CHUNK_BYTES = 64 << 20  # a chunk of large files is closed early
MAX_CODEC_REFUSALS = 3  # chunks of a codec that only PyAV could decode, before all of that codec goes to PyAV


class Graph(Protocol):
    """Decodes, augments, crops, scales and flips one chunk at a time; `busy` between `start` and `finish`."""

    busy: bool

    def start(self, clips: Sequence[EncodedClip]) -> None:
        """Take the clips over (they are copied) and begin."""

    def finish(self) -> torch.Tensor | list[torch.Tensor]:
        """uint8 frames_THWC of each clip of the chunk. Raises RuntimeError when a file could not be decoded."""


@dataclass(eq=False)
class _Assembly:
    """A micro-batch that is being put together."""

    tickets: list[ReadRequest]
    frames_BTHWC: torch.Tensor
    num_pending: int = 0
    complete: bool = False


@dataclass(eq=False)
class _DecodeChunk:
    """Clips that go through one graph together: the batch they belong to, their places in it, their codecs."""

    assembly: _Assembly
    places: list[int]
    graph: Graph
    codecs: frozenset[str]


class BatchBuilder:
    """Puts the micro-batches of one run together, from `first_step` on; all in the thread that iterates over `batches`.

    `positions(step, micro)` are this rank's clips; `new_graph()` makes a graph, of which up to `num_graphs` are kept; `codecs`
    are those that graphs decode; `stream` is the CUDA stream to work on.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        *,
        positions: Callable[[int, int], range],
        accumulation: int,
        size: tuple[int, int],
        device: torch.device,
        stream: torch.cuda.Stream | None,
        codecs: frozenset[str],
        new_graph: Callable[[], Graph],
        num_graphs: int,
        num_workers: int,
        num_ahead: int,
        timeout_seconds: float,
    ) -> None:
        self._sampler = sampler
        self._positions = positions
        self._accumulation = accumulation
        self._clip_shape = (sampler.num_frames, *size, 3)
        self._device = device
        self._stream = stream
        self._codecs = codecs
        self._refusals: Counter[str] = Counter()
        self._new_graph = new_graph
        self._num_graphs = num_graphs
        self._graphs: deque[Graph] = deque()
        self._num_ahead = num_ahead
        self._in_flight: deque[_DecodeChunk] = deque()
        self._assemblies: deque[_Assembly] = deque()
        self._named: tuple[int, set[str]] = (-1, set())
        self.graph_entered_seconds: float | None = None
        self._repeated = SharedDecoder(
            sampler.repeats, draw=sampler.spec, read=functools.partial(read_together, size=self._clip_shape[1:3])
        )
        self._lookahead = ClipPrefetcher(self._read, draw=sampler.spec, num_workers=num_workers, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """End the reading threads; `batches` raises Closed if it waits for one of them."""
        self._lookahead.close()

    def release(self) -> None:
        """Let go of the graphs and all clips, once nobody iterates over `batches` any more."""
        self._graphs = deque()
        self._in_flight.clear()
        self._assemblies.clear()

    def batches(self, first_step: int) -> Iterator[ClipBatch]:
        """Batches in order, as their chunks come out of the graphs; without end."""
        plans = (self._positions(step, micro) for step in itertools.count(first_step) for micro in range(self._accumulation))
        ahead: deque[list[ReadRequest]] = deque()
        while True:
            while len(ahead) < self._num_ahead:
                ahead.append([self._lookahead.ask(position) for position in next(plans)])
            tickets = ahead.popleft()
            assembly = _Assembly(tickets, self._zeros(len(tickets)))
            self._assemblies.append(assembly)
            places: list[int] = []
            for place, ticket in enumerate(tickets):
                if not ticket.done:
                    while self._in_flight:  # nothing to feed yet: let finished work out meanwhile
                        self._finish_oldest()
                    yield from self._finished_batches()
                self._lookahead.wait(ticket)
                places.append(place)
                held = sum(tickets[place].clip.num_bytes for place in places if tickets[place].clip is not None)
                if len(places) == MAX_CHUNK_CLIPS or held >= MAX_CHUNK_BYTES or place == len(tickets) - 1:
                    self._dispatch(assembly, places)
                    places = []
            assembly.complete = True
            yield from self._finished_batches()

    def _read(self, spec: ClipSpec, on_cpu: bool) -> DecodedClip | EncodedClip:
        """What the look-ahead's threads do for each clip."""
        size = self._clip_shape[1:3]
        if on_cpu or not self._codecs:
            if self._sampler.repeats > 1 and spec.attempt == 0:
                return self._repeated.read(spec)
            return read_decoded(spec, size=size)
        return read_for_device(spec, codecs=self._codecs, size=size, whole_frames=self._sampler.augments)

    def _zeros(self, num_clips: int) -> torch.Tensor:
        shape = (num_clips, *self._clip_shape)
        if self._device.type == "cpu":
            return torch.from_numpy(np.zeros(shape, np.uint8))
        with torch.cuda.stream(self._stream):
            return torch.zeros(shape, dtype=torch.uint8, device=self._device)

    def _dispatch(self, assembly: _Assembly, places: Sequence[int]) -> None:
        """Copy the decoded clips of a chunk to their places and feed the encoded ones to a graph; blank ones stay zero."""
        clips = {place: assembly.tickets[place].clip for place in places}
        members = [place for place in places if isinstance(clips[place], EncodedClip)]
        if members:
            graph = self._free_graph()
            assembly.num_pending += 1
            self._in_flight.append(_DecodeChunk(assembly, members, graph, frozenset(clips[place].codec for place in members)))
            graph.start([clips[place] for place in members])
        for place in places:
            if isinstance(clips[place], DecodedClip):
                self._place(clips[place], assembly.frames_BTHWC[place])
            self._lookahead.release(assembly.tickets[place])

    def _place(self, clip: DecodedClip, to: torch.Tensor) -> None:
        """Copy a finished clip into the batch; it is no longer needed when this returns."""
        with torch.cuda.stream(self._stream):
            _copy(torch.from_numpy(clip.frames_THWC), to=to)

    def _free_graph(self) -> Graph:
        graphs = self._graphs
        while True:  # what finishes may fail, and take its graph out of the round
            if len(graphs) < self._num_graphs:
                graphs.appendleft(self._new_graph())
            if not graphs[0].busy:
                graphs.rotate(-1)
                return graphs[-1]
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        chunk = self._in_flight.popleft()
        try:
            self._take(chunk)
        except RuntimeError as error:
            self._decode_instead(chunk, error)
        chunk.assembly.num_pending -= 1

    def _take(self, chunk: _DecodeChunk) -> None:
        """Copy a chunk's frames from its graph into the batch."""
        self.graph_entered_seconds = time.monotonic()
        with torch.cuda.stream(self._stream):
            for place, frames_THWC in zip(chunk.places, chunk.graph.finish(), strict=True):
                _copy(frames_THWC, to=chunk.assembly.frames_BTHWC[place])
            self._synchronize()  # the graph may use its buffer again once nothing refers to it
        self.graph_entered_seconds = None

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _decode_instead(self, chunk: _DecodeChunk, error: RuntimeError) -> None:
        """Send a chunk that the device could not decode through PyAV, which also finds out which file is to blame."""
        self.graph_entered_seconds = None
        self._graphs.remove(chunk.graph)  # another is made in its place: this one may not be sound any more
        logger.warning("the device's decoder refused some clips, PyAV decodes them: %s", _cause(error))
        refused = [chunk.assembly.tickets[place] for place in chunk.places]
        again = [
            self._lookahead.ask(ticket.position, attempt=ticket.attempt, on_cpu=True, first=True) for ticket in refused[::-1]
        ][::-1]
        for place, before, ticket in zip(chunk.places, refused, again, strict=True):
            self._lookahead.wait(ticket)
            ticket.failures[:0] = before.failures
            chunk.assembly.tickets[place] = ticket
            if ticket.clip is not None:
                self._place(ticket.clip, chunk.assembly.frames_BTHWC[place])
            self._lookahead.release(ticket)
        if all(ticket.attempt == before.attempt for before, ticket in zip(refused, again, strict=True)):
            for codec in chunk.codecs & self._codecs:
                self._refusals[codec] += 1
                if self._refusals[codec] >= MAX_CODEC_REFUSALS:
                    self._codecs -= {codec}
                    logger.warning("%s goes to PyAV from now on: the device's decoder refuses it", codec)

    def _finished_batches(self) -> Iterator[ClipBatch]:
        while self._assemblies and self._assemblies[0].complete and not self._assemblies[0].num_pending:
            yield self._to_batch(self._assemblies.popleft())

    def _to_batch(self, assembly: _Assembly) -> ClipBatch:
        tickets = assembly.tickets
        firsts = [self._sampler.spec(ticket.position) for ticket in tickets]
        # A blank clip keeps the sample and label of the clip that it stands for.
        blank = [ticket.attempt >= MAX_ATTEMPTS for ticket in tickets]
        used = [first if empty else ticket.spec for first, ticket, empty in zip(firsts, tickets, blank, strict=True)]
        with torch.cuda.stream(self._stream):
            batch = ClipBatch(
                frames_BTHWC=assembly.frames_BTHWC,
                label_B=torch.tensor([spec.label for spec in used], device=self._device),
                sample_B=torch.tensor([spec.sample for spec in used], device=self._device),
                valid_B=torch.tensor([ticket.attempt == 0 for ticket in tickets], device=self._device),
                seed_B=torch.tensor([spec.clip_seed for spec in firsts], device=self._device),
                bad=self._name_bad(tickets),
                paths=tuple("" if empty else spec.path for spec, empty in zip(used, blank, strict=True)),
                num_substitutes=sum(ticket.attempt != 0 for ticket in tickets),
                clip_seeds=tuple(spec.clip_seed for spec in firsts),
            )
            self._synchronize()
        return batch

    def _name_bad(self, tickets: Sequence[ReadRequest]) -> tuple[BadClip, ...]:
        """The unreadable files of a batch that this epoch has not named yet, in the order of the clips."""
        epoch = self._sampler.epoch(tickets[0].position)
        if epoch != self._named[0]:
            self._named = (epoch, set())
        fresh: dict[str, BadClip] = {}
        for ticket in tickets:
            for failure in ticket.failures:
                if failure.path not in self._named[1]:
                    fresh.setdefault(failure.path, failure)
        self._named[1].update(fresh)
        return tuple(fresh.values())


def _copy(frames_THWC: torch.Tensor, *, to: torch.Tensor) -> None:
    """Copy without torch's own threads where the host does it: from this thread they would be a second set beside those of
    training, which wait by spinning (it cost 10 CPU ms a clip of 96 x 96, as much as reading it).
    """
    if to.is_cuda:
        to.copy_(frames_THWC)
    else:
        np.copyto(to.numpy(), frames_THWC.numpy())


def _cause(error: RuntimeError) -> str:
    """What DALI's error says between its traceback of the graph and its closing words, in one line."""
    text = str(error).rpartition("encountered:")[2].partition("C++ context")[0]
    return " ".join(text.split())[:300]
