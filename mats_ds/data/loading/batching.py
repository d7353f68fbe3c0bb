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
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.nvdec.chunks import MAX_CHUNK_BYTES, MAX_CHUNK_CLIPS, DecodeChunk, DeviceDecoder, PartialBatch
from mats_ds.data.loading.nvdec.refusals import Refusals, cause_of
from mats_ds.data.loading.prefetch import MAX_ATTEMPTS, ClipPrefetcher, ReadOptions, ReadRequest
from mats_ds.data.loading.reader import ClipReader, DecodedClip, EncodedClip
from mats_ds.data.video.nvdec_support import CodecLimits


class BatchBuilder:
    """Puts the micro-batches of one run together, from `first_step` on; all in the thread that
    iterates over `batches`.

    size: (height, width) of the frames. options: with `num_workers` and `num_graphs` chosen.
    codecs: those that the device decodes, with its limits. new_decoder: makes a decoder that works
    on a CUDA stream (None on a CPU); up to `num_graphs` are kept.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        *,
        split: BatchSplit,
        size: tuple[int, int],
        device: torch.device,
        options: ReadOptions,
        codecs: Mapping[str, CodecLimits],
        new_decoder: Callable[[torch.cuda.Stream | None], DeviceDecoder],
    ) -> None:
        self._sampler = sampler
        self._split = split
        self._clip_shape = (sampler.num_frames, *size, 3)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._refusals = Refusals()
        self._new_decoder = new_decoder
        self._num_decoders = options.num_graphs
        self._decoders: deque[DeviceDecoder] = deque()
        self._num_ahead = max(options.prefetch, -(-2 * options.num_workers // split.micro_batch))
        self._in_flight: deque[DecodeChunk] = deque()
        self._unfinished: deque[PartialBatch] = deque()
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
                self._spare_device(ahead[-1])
            requests = ahead.popleft()
            batch = PartialBatch(requests, self._zeros(len(requests)))
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

    def _spare_device(self, requests: Sequence[ReadRequest]) -> None:
        """Have PyAV decode the files that the device has refused before. What is already read for
        the device by then is found when it is to be decoded."""
        for request in requests if self._refusals.num_files else ():
            request.on_cpu |= self._refusals.has(self._sampler.spec(request.position).path)

    def _dispatch(self, batch: PartialBatch, indices: Sequence[int]) -> None:
        """Copy the decoded clips of a chunk to their rows and feed the encoded ones to a decoder;
        blank ones stay zero."""
        clips = {index: batch.requests[index].clip for index in indices}
        encoded = [index for index in indices if isinstance(clips[index], EncodedClip)]
        refused = [index for index in encoded if self._refusals.has(batch.requests[index].spec.path)]
        encoded = [index for index in encoded if index not in refused]
        if encoded:
            decoder = self._free_decoder()
            batch.num_pending += 1
            self._in_flight.append(DecodeChunk(batch, encoded, decoder, [clips[index].codec for index in encoded]))
            decoder.start([clips[index] for index in encoded])
        for index in indices:
            if isinstance(clips[index], DecodedClip):
                self._copy_decoded(clips[index], to=batch.frames_BTHWC[index])
            self._prefetcher.release(batch.requests[index])
        for index in refused:
            self._decode_with_pyav(batch, index)

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
            self._copy_frames(chunk.decoder, chunk.batch, chunk.indices)
        except RuntimeError as error:
            self._decode_one_by_one(chunk, error)
        else:
            self._refusals.note_success(chunk.codecs)
        chunk.batch.num_pending -= 1

    def _copy_frames(self, decoder: DeviceDecoder, batch: PartialBatch, indices: Sequence[int]) -> None:
        """Copy the frames that come out of a decoder into their rows of the batch."""
        self.decoder_entered_seconds = time.monotonic()
        try:
            with torch.cuda.stream(self._stream):
                for index, frames_THWC in zip(indices, decoder.finish(), strict=True):
                    _copy(frames_THWC, to=batch.frames_BTHWC[index])
                self._synchronize()  # the decoder may use its buffer again once nothing refers to it
        finally:
            self.decoder_entered_seconds = None

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _decode_one_by_one(self, chunk: DecodeChunk, error: RuntimeError) -> None:
        """Give the clips of a chunk that the device could not decode to it one by one, and those
        that it refuses again to PyAV."""
        # others are made instead: one that has failed may not be sound any more
        self._decoders.remove(chunk.decoder)
        if len(chunk.indices) == 1:
            return self._decode_refused(chunk.batch, chunk.indices[0], codec=chunk.codecs[0], error=error)
        decoder = None
        for index, codec in zip(chunk.indices, chunk.codecs, strict=True):
            request = self._read_again(chunk.batch, index, on_cpu=False)
            clip = request.clip
            if isinstance(clip, EncodedClip):
                decoder = decoder or self._new_decoder(self._stream)
                decoder.start([clip])
                try:
                    self._copy_frames(decoder, chunk.batch, [index])
                except RuntimeError as refusal:
                    decoder = None
                    self._prefetcher.release(request)
                    self._decode_refused(chunk.batch, index, codec=codec, error=refusal)
                    continue
                self._refusals.note_success([codec])
            elif clip is not None:
                self._copy_decoded(clip, to=chunk.batch.frames_BTHWC[index])
            self._prefetcher.release(request)
        if decoder is not None:
            self._decoders.appendleft(decoder)

    def _decode_refused(self, batch: PartialBatch, index: int, *, codec: str, error: RuntimeError) -> None:
        """Decode a clip that the device refused alone with PyAV, which also finds out whether the
        file is to blame, and remember the file."""
        before = batch.requests[index]
        self._decode_with_pyav(batch, index)
        is_sound = batch.requests[index].attempt == before.attempt
        if self._refusals.note(before.spec.path, codec=codec, cause=cause_of(error), is_sound=is_sound):
            self._prefetcher.codecs = {name: limits for name, limits in self._prefetcher.codecs.items() if name != codec}

    def _decode_with_pyav(self, batch: PartialBatch, index: int) -> None:
        request = self._read_again(batch, index, on_cpu=True)
        if request.clip is not None:
            self._copy_decoded(request.clip, to=batch.frames_BTHWC[index])
        self._prefetcher.release(request)

    def _read_again(self, batch: PartialBatch, index: int, *, on_cpu: bool) -> ReadRequest:
        """Read a clip of a batch once more, before all others that wait; its request takes the
        place of the one before."""
        before = batch.requests[index]
        request = self._prefetcher.ask(before.position, attempt=before.attempt, on_cpu=on_cpu, first=True)
        self._prefetcher.wait(request)
        request.failures[:0] = before.failures
        batch.requests[index] = request
        return request

    def _finished_batches(self) -> Iterator[ClipBatch]:
        while self._unfinished and self._unfinished[0].complete and not self._unfinished[0].num_pending:
            yield self._to_batch(self._unfinished.popleft())

    def _to_batch(self, finished: PartialBatch) -> ClipBatch:
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
