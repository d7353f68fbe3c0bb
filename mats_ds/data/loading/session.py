"""One run through a ClipLoader's data: the batches from a step on, put together by a thread that
runs ahead of training."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Iterator

import torch

from mats_ds.core.clips import ClipBatch
from mats_ds.data.loading.batching import BatchBuilder
from mats_ds.data.loading.prefetch import Closed, ReadOptions

STALL_SECONDS = 300.0
JOIN_SECONDS = 3.0


class LoadingSession:
    """One run through the data: a BatchBuilder and the thread that runs it ahead of training."""

    def __init__(self, builder: BatchBuilder, *, first_step: int, device: torch.device, options: ReadOptions) -> None:
        self._builder = builder
        self._first_step = first_step
        self._device = device
        self._clip_timeout_seconds = options.clip_timeout_seconds
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
        for batch in self._from_caller() if self._thread is None else self._from_thread():
            if self._device.type == "cuda":
                # The memory was taken on another stream: it must not be used anew before the
                # consumer's stream is through.
                for tensor in (batch.frames_BTHWC, batch.label_B, batch.sample_B, batch.valid_B, batch.seed_B):
                    tensor.record_stream(torch.cuda.current_stream(self._device))
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

    def _from_caller(self) -> Iterator[ClipBatch]:
        try:
            yield from self._builder.batches(self._first_step)
        except Closed:
            return

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
        limit = max(STALL_SECONDS, 5 * self._clip_timeout_seconds)
        if since is not None and time.monotonic() - since > limit:
            raise RuntimeError(f"DALI has not delivered a chunk of clips for {limit:g} s: its video decoder hangs")

    def _produce(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
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
