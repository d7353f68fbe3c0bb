"""Measured bytes of tensors: kept for backward by one forward pass (SavedBytes), and alive in a
context (LiveBytes).

Every storage counts once; SavedBytes leaves out parameters, buffers and the module's inputs.
Recomputed parts keep their inputs only, and only those are counted. It costs one Python call for
each saved tensor of that one pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class SavedBytes:
    """Counts what a module's next forward pass in training keeps for backward: `num_bytes`, None
    until that pass is over."""

    def __init__(self, module: nn.Module) -> None:
        self.num_bytes: int | None = None
        self._kept: dict[int, tuple[int, torch.Tensor]] = {}
        self._others: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
        self._handles = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end, always_call=True),
        ]

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, module: nn.Module, inputs: tuple) -> None:
        if self.num_bytes is not None or not torch.is_grad_enabled():
            return
        others = (*module.parameters(), *module.buffers(), *(part for part in inputs if isinstance(part, torch.Tensor)))
        self._others = {tensor.untyped_storage().data_ptr() for tensor in others}
        self._hooks.__enter__()

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._others:
            # Holding the tensor keeps its address in use until the pass is over.
            self._kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def _end(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if not self._others:
            return
        self._hooks.__exit__(None, None, None)
        self.num_bytes = sum(size for size, _ in self._kept.values())
        self._kept, self._others = {}, set()
        self.detach()


ALLOCATOR_UNIT_BYTES = 512  # CUDA's caching allocator rounds every request up to it


class LiveBytes(TorchDispatchMode):
    """Inside `with LiveBytes() as live:`, `live.now_bytes` are alive, and `live.peak_bytes` were
    the most since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_bytes = 0
        self.peak_bytes = 0
        self._size_of: dict[int, int] = {}

    def restart(self) -> None:
        """Begin a new peak."""
        self.peak_bytes = self.now_bytes

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage unless it is counted already. Tensors without memory (device
        "meta") do not count."""
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

    def _forget(self, storage: int) -> None:
        self.now_bytes -= self._size_of.pop(storage)

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
