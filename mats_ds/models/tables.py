"""Modules whose fixed tables (position tables, input constants) stay in float32 when their parameters are cast.

DeepSpeed casts parameters only: under bf16 its engine adds float32 positions, rounded once, and folds float32 constants into the
patch embedding. `module.to(torch.bfloat16)` would cast buffers as well, and a model outside the engine would compute other
numbers than the one that was trained. One class, so that no caller can forget it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class KeepsTables(nn.Module):
    """`.to(dtype)`, `.bfloat16()` and the like cast parameters, and leave the type of this module's own buffers as it was."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *arguments: Any, **options: Any) -> KeepsTables:
        tables = dict(self._buffers)
        super()._apply(fn, *arguments, **options)
        for name, table in tables.items():
            moved = self._buffers[name]
            if table is not None and moved.dtype != table.dtype:
                self._buffers[name] = table.to(moved.device)
        return self
