"""mats_ds: pre-train and fine-tune video models with motion-aware token selection on one machine.

Importing this package loads neither torch nor DALI nor DeepSpeed; each public name loads what it
needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "TokenGrid": "mats_ds.core.token_grid",
    "TokenSelection": "mats_ds.core.token_grid",
    "load_recipe": "mats_ds.config.load",
    "read_frames": "mats_ds.data.video.frames",
    "video_facts": "mats_ds.data.video.frames",
    "ClipLoader": "mats_ds.data.loading.loader",
    "score_motion": "mats_ds.tokens.motion",
    "select_tokens": "mats_ds.tokens.selection",
    "select_frames": "mats_ds.tokens.frames",
    "MaskedAutoencoder": "mats_ds.models.mae",
    "Reconstruction": "mats_ds.models.mae",
    "VideoClassifier": "mats_ds.models.classifier",
    "load_model": "mats_ds.models.weights.load",
    "load_classifier": "mats_ds.models.weights.load",
    "load_encoder": "mats_ds.models.weights.load",
    "step_flops": "mats_ds.planning.flops",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mats_ds' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
