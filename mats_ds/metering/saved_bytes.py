"""What the forward pass keeps for backward, measured once: a module's next forward pass in training -> bytes.

Every storage counts once; parameters, buffers and the module's inputs do not. Parts that are computed again in backward keep
their inputs only, and only those are counted. It costs one Python call for each saved tensor of that one pass.
"""

from __future__ import annotations

import torch
from torch import nn


class SavedBytes:
    """Attach it before a forward pass; `num_bytes` is None until the pass is over, and the hooks are gone then."""

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
        """Measure nothing any more."""
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
            # Holding the tensor keeps its address taken until the pass is over.
            self._kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def _end(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if not self._others:
            return
        self._hooks.__exit__(None, None, None)
        self.num_bytes = sum(size for size, _ in self._kept.values())
        self._kept, self._others = {}, set()
        self.detach()
