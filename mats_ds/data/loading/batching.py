"""Clips as they are read -> micro-batches on the device, in order.

Legend: B clips of a micro-batch, T frames, H height, W width, C colours. What PyAV decoded is
copied to its row of the batch. What the device decodes is cut into chunks, which go round robin
through several decoders that decode, crop and scale: so several hardware engines are busy at once,
memory for files and pictures stays bounded, and a failure costs one chunk. Frames, order and
substitutes depend on the sampler alone, never on threads, chunks or speed. This module knows a
decoder only by what it does (`DeviceDecoder`), not that it is DALI's.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.prefetch import MAX_ATTEMPTS, ClipPrefetcher, ReadOptions, ReadRequest
from mats_ds.data.loading.reader import ClipReader, DecodedClip, EncodedClip

logger = logging.getLogger(__name__)

MAX_CHUNK_CLIPS = 8
MAX_CHUNK_BYTES = 64 << 20  # a chunk of large files is closed early
# chunks of a codec that only PyAV could decode, before all of that codec goes to PyAV
MAX_CODEC_REFUSALS = 3


class DeviceDecoder(Protocol):
    """Decodes, augments, crops, scales and flips one chunk at a time; `busy` between `start` and
    `finish`."""

    busy: bool

    def start(self, clips: Sequence[EncodedClip]) -> None:
        """Take the clips over (they are copied) and begin."""

    def finish(self) -> torch.Tensor | list[torch.Tensor]:
        """uint8 frames_THWC of each clip of the chunk. Raises RuntimeError when a file could not be
        decoded."""


@dataclass(eq=False)
class _PartialBatch:
    """A micro-batch that is being put together. num_pending: chunks of it that decoders work on."""

    requests: list[ReadRequest]
    frames_BTHWC: torch.Tensor
    num_pending: int = 0
    complete: bool = False


@dataclass(eq=False)
class _DecodeChunk:
    """Clips that go through one decoder together. indices: their rows of the batch."""

    batch: _PartialBatch
    indices: list[int]
    decoder: DeviceDecoder
    codecs: frozenset[str]


class BatchBuilder:
    """Puts the micro-batches of one run together, from `first_step` on; all in the thread that
    iterates over `batches`.

    size: (height, width) of the frames. options: with `num_workers` and `num_graphs` chosen.
    codecs: those that the device decodes. new_decoder: makes a decoder that works on a CUDA stream
    (None on a CPU); up to `num_graphs` are kept.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        *,
        split: BatchSplit,
        size: tuple[int, int],
        device: torch.device,
        options: ReadOptions,
        codecs: frozenset[str],
        new_decoder: Callable[[torch.cuda.Stream | None], DeviceDecoder],
    ) -> None:
        self._sampler = sampler
        self._split = split
        self._clip_shape = (sampler.num_frames, *size, 3)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._refusals: Counter[str] = Counter()
        self._new_decoder = new_decoder
        self._num_decoders = options.num_graphs
        self._decoders: deque[DeviceDecoder] = deque()
        self._num_ahead = max(options.prefetch, -(-2 * options.num_workers // split.micro_batch))
        self._in_flight: deque[_DecodeChunk] = deque()
        self._unfinished: deque[_PartialBatch] = deque()
        self._named: tuple[int, set[str]] = (-1, set())
        self.decoder_entered_seconds: float | None = None
        self._prefetcher = ClipPrefetcher(
            ClipReader(size, gives_whole_frames=sampler.augments).read,
            spec_of=sampler.spec,
            num_workers=options.num_workers,
            timeout_seconds=options.clip_timeout_seconds,
            repeats=sampler.repeats,
            codecs=codecs,
        )

    def close(self) -> None:
        """End the reading processes; `batches` raises Closed if it waits for one of them."""
        self._prefetcher.close()

    def release(self) -> None:
        """Let go of the decoders and all clips, once nobody iterates over `batches` any more."""
        self._decoders = deque()
        self._in_flight.clear()
        self._unfinished.clear()

    def batches(self, first_step: int) -> Iterator[ClipBatch]:
        """Batches in order, as their chunks come out of the decoders; without end."""
        positions = (
            self._split.positions(step, micro, global_batch=self._sampler.global_batch)
            for step in itertools.count(first_step)
            for micro in range(self._split.accumulation)
        )
        ahead: deque[list[ReadRequest]] = deque()
        while True:
            while len(ahead) < self._num_ahead:
                ahead.append(self._prefetcher.ask_all(next(positions)))
            requests = ahead.popleft()
            batch = _PartialBatch(requests, self._zeros(len(requests)))
            self._unfinished.append(batch)
            indices: list[int] = []
            for index, request in enumerate(requests):
                if not request.done:
                    while self._in_flight:  # nothing to feed yet: let finished work out meanwhile
                        self._finish_oldest()
                    yield from self._finished_batches()
                self._prefetcher.wait(request)
                indices.append(index)
                held = sum(requests[index].clip.num_bytes for index in indices if requests[index].clip is not None)
                if len(indices) == MAX_CHUNK_CLIPS or held >= MAX_CHUNK_BYTES or index == len(requests) - 1:
                    self._dispatch(batch, indices)
                    indices = []
            batch.complete = True
            yield from self._finished_batches()

    def _zeros(self, num_clips: int) -> torch.Tensor:
        shape = (num_clips, *self._clip_shape)
        if self._device.type == "cpu":
            return torch.from_numpy(np.zeros(shape, np.uint8))
        with torch.cuda.stream(self._stream):
            return torch.zeros(shape, dtype=torch.uint8, device=self._device)

    def _dispatch(self, batch: _PartialBatch, indices: Sequence[int]) -> None:
        """Copy the decoded clips of a chunk to their rows and feed the encoded ones to a decoder;
        blank ones stay zero."""
        clips = {index: batch.requests[index].clip for index in indices}
        encoded = [index for index in indices if isinstance(clips[index], EncodedClip)]
        if encoded:
            decoder = self._free_decoder()
            batch.num_pending += 1
            self._in_flight.append(_DecodeChunk(batch, encoded, decoder, frozenset(clips[index].codec for index in encoded)))
            decoder.start([clips[index] for index in encoded])
        for index in indices:
            if isinstance(clips[index], DecodedClip):
                self._copy_decoded(clips[index], to=batch.frames_BTHWC[index])
            self._prefetcher.release(batch.requests[index])

    def _copy_decoded(self, clip: DecodedClip, *, to: torch.Tensor) -> None:
        """Copy a decoded clip into the batch; it is no longer needed when this returns."""
        with torch.cuda.stream(self._stream):
            _copy(torch.from_numpy(clip.frames_THWC), to=to)

    def _free_decoder(self) -> DeviceDecoder:
        decoders = self._decoders
        while True:  # what finishes may fail, and take its decoder out of the round
            if len(decoders) < self._num_decoders:
                decoders.appendleft(self._new_decoder(self._stream))
            if not decoders[0].busy:
                decoders.rotate(-1)
                return decoders[-1]
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        chunk = self._in_flight.popleft()
        try:
            self._copy_chunk(chunk)
        except RuntimeError as error:
            self._decode_with_pyav(chunk, error)
        chunk.batch.num_pending -= 1

    def _copy_chunk(self, chunk: _DecodeChunk) -> None:
        """Copy a chunk's frames from its decoder into the batch."""
        self.decoder_entered_seconds = time.monotonic()
        with torch.cuda.stream(self._stream):
            for index, frames_THWC in zip(chunk.indices, chunk.decoder.finish(), strict=True):
                _copy(frames_THWC, to=chunk.batch.frames_BTHWC[index])
            self._synchronize()  # the decoder may use its buffer again once nothing refers to it
        self.decoder_entered_seconds = None

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _decode_with_pyav(self, chunk: _DecodeChunk, error: RuntimeError) -> None:
        """Send a chunk that the device could not decode through PyAV, which also finds out which
        file is to blame."""
        self.decoder_entered_seconds = None
        # another is made instead: this one may not be sound any more
        self._decoders.remove(chunk.decoder)
        logger.warning("the device's decoder refused some clips, PyAV decodes them: %s", _cause(error))
        refused = [chunk.batch.requests[index] for index in chunk.indices]
        again = [
            self._prefetcher.ask(request.position, attempt=request.attempt, on_cpu=True, first=True) for request in refused[::-1]
        ][::-1]
        for index, before, request in zip(chunk.indices, refused, again, strict=True):
            self._prefetcher.wait(request)
            request.failures[:0] = before.failures
            chunk.batch.requests[index] = request
            if request.clip is not None:
                self._copy_decoded(request.clip, to=chunk.batch.frames_BTHWC[index])
            self._prefetcher.release(request)
        if all(request.attempt == before.attempt for before, request in zip(refused, again, strict=True)):
            for codec in chunk.codecs & self._prefetcher.codecs:
                self._refusals[codec] += 1
                if self._refusals[codec] >= MAX_CODEC_REFUSALS:
                    self._prefetcher.codecs -= {codec}
                    logger.warning("%s goes to PyAV from now on: the device's decoder refuses it", codec)

    def _finished_batches(self) -> Iterator[ClipBatch]:
        while self._unfinished and self._unfinished[0].complete and not self._unfinished[0].num_pending:
            yield self._to_batch(self._unfinished.popleft())

    def _to_batch(self, finished: _PartialBatch) -> ClipBatch:
        requests = finished.requests
        firsts = [self._sampler.spec(request.position) if request.attempt else request.spec for request in requests]
        # A blank clip keeps the sample and label of the clip that it stands for.
        blank = [request.attempt >= MAX_ATTEMPTS for request in requests]
        used = [first if empty else request.spec for first, request, empty in zip(firsts, requests, blank, strict=True)]
        with torch.cuda.stream(self._stream):
            batch = ClipBatch(
                frames_BTHWC=finished.frames_BTHWC,
                label_B=torch.tensor([spec.label for spec in used], device=self._device),
                sample_B=torch.tensor([spec.sample for spec in used], device=self._device),
                valid_B=torch.tensor([request.attempt == 0 for request in requests], device=self._device),
                seed_B=torch.tensor([spec.clip_seed for spec in firsts], device=self._device),
                bad=self._name_bad(requests),
                paths=tuple("" if empty else spec.path for spec, empty in zip(used, blank, strict=True)),
                num_substitutes=sum(request.attempt != 0 for request in requests),
                clip_seeds=tuple(spec.clip_seed for spec in firsts),
            )
            self._synchronize()
        return batch

    def _name_bad(self, requests: Sequence[ReadRequest]) -> tuple[BadClip, ...]:
        """The unreadable files of a batch that this epoch has not named yet, in the order of the
        clips."""
        epoch = self._sampler.epoch(requests[0].position)
        if epoch != self._named[0]:
            self._named = (epoch, set())
        fresh: dict[str, BadClip] = {}
        for request in requests:
            for failure in request.failures:
                if failure.path not in self._named[1]:
                    fresh.setdefault(failure.path, failure)
        self._named[1].update(fresh)
        return tuple(fresh.values())


def _copy(frames_THWC: torch.Tensor, *, to: torch.Tensor) -> None:
    """Copy without torch's own threads where the host does it: from this thread they would be a
    second set beside those of training, which wait by spinning (it cost 10 CPU ms a clip of 96 x
    96, as much as reading it).
    """
    if to.is_cuda:
        to.copy_(frames_THWC)
    else:
        np.copyto(to.numpy(), frames_THWC.numpy())


def _cause(error: RuntimeError) -> str:
    """The cause in DALI's error, between its traceback of the graph and its closing remarks, in one
    line."""
    text = str(error).rpartition("encountered:")[2].partition("C++ context")[0]
    return " ".join(text.split())[:300]
