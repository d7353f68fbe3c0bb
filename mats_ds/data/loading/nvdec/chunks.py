"""Chunks of clips that go through one of the device's decoders together, and what a decoder
does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mats_ds.data.loading.prefetch import ReadRequest
from mats_ds.data.loading.reader import EncodedClip

MAX_CHUNK_CLIPS = 8
MAX_CHUNK_BYTES = 64 << 20  # a chunk of large files is closed early


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
class PartialBatch:
    """A micro-batch that is being put together. num_pending: chunks of it that decoders work on."""

    requests: list[ReadRequest]
    frames_BTHWC: torch.Tensor
    num_pending: int = 0
    complete: bool = False


@dataclass(eq=False)
class DecodeChunk:
    """Clips that go through one decoder together. indices, codecs: of each, its row of the batch
    and its codec."""

    batch: PartialBatch
    indices: list[int]
    decoder: DeviceDecoder
    codecs: list[str]
