"""Bytes of all tensors that are alive, operation by operation: a stand-in for the peak figures of CUDA's allocator.

Every storage counts once, from the operation that makes it until nobody refers to it, rounded up as CUDA's allocator does. It
works on real tensors and under FakeTensorMode, where nothing is computed and no memory is touched. Not seen: what a kernel takes
and gives back inside one operation, fragments, and tensors made before the mode was entered (see `count`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATOR_UNIT_BYTES = 512  # CUDA's caching allocator rounds every request up to it


class LiveBytes(TorchDispatchMode):
    """Inside `with LiveBytes() as live:`, `live.now_bytes` is what is alive and `live.peak_bytes` the most since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = 0
        self.peak_bytes = 0
        self._size_of: dict[int, int] = {}

    def restart(self) -> None:
        """Begin a new peak."""
        self.peak_bytes = self.now_bytes

    def count(self, tensor: torch.Tensor) -> None:
        """Take in a tensor's storage unless it is known already. Tensors without memory (device "meta") do not count."""
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // ALLOCATOR_UNIT_BYTES) * ALLOCATOR_UNIT_BYTES
        if size == 0 or storage._cdata in self._size_of:
            return
        self._size_of[storage._cdata] = size
        weakref.finalize(storage, self._forget, storage._cdata)
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _forget(self, key: int) -> None:
        self.now_bytes -= self._size_of.pop(key)

    @contextmanager
    def peak_into(self, peaks: list[int]) -> Iterator[None]:
        """Append the peak inside the context."""
        self.restart()
        yield
        peaks.append(self.peak_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                self.count(part)
        return result
