"""Reading video: manifest, sampling, decoding, pipeline. `ClipLoader` is its public name, loaded
when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"ClipLoader": "mats_ds.data.loading.loader"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mats_ds.data' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
