"""How many bytes the tensors of a loaded file claim: a file cannot hold more than its own length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def count_stored_bytes(content: Any) -> int:
    """Bytes of all storages below `content`, each once however many tensors and containers share it.

    Reads none of them. Sparse tensors are not counted: nothing here unfolds them.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided:
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return sum(storages.values())
