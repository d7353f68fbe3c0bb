"""The files of a list -> how many of them NVDEC decodes, and why PyAV decodes the others: counts
over a sample, for the line that a run begins with."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mats_ds.core.format import format_count
from mats_ds.core.storage.package_files import own_command
from mats_ds.data.loading.nvdec.limits import find_nvdec
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import CodecLimits, why_on_cpu

MAX_FILES = 64  # looked at, evenly over the list
MAX_SECONDS = 5.0  # a file of an hour, or on a slow disk, takes seconds alone


@dataclass(frozen=True)
class Route:
    """num_listed: different files in the list; num_seen: those looked at, of which `num_nvdec` go
    to NVDEC, those in `reasons` to PyAV, and the others cannot be read."""

    num_listed: int
    num_seen: int
    num_nvdec: int
    reasons: Mapping[str, int]

    def describe(self) -> str:
        """One line."""
        others = sorted(self.reasons.items(), key=lambda pair: -pair[1])
        num_pyav = sum(self.reasons.values())
        seen = f" looked at (of {self.num_listed:,})" if self.num_seen < self.num_listed else ""
        parts = [f"{self.num_nvdec:,} of {format_count(self.num_seen, 'file')}{seen} to NVDEC"]
        if num_pyav:
            parts.append(f"{num_pyav:,} to PyAV because of {', '.join(f'{reason} ({count:,})' for reason, count in others)}")
        if num_bad := self.num_seen - self.num_nvdec - num_pyav:
            parts.append(f"{num_bad:,} cannot be read")
        if num_pyav > self.num_nvdec:
            parts.append(f"`{own_command('prepare', 'transcode')}` makes copies that NVDEC takes")
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reasons": dict(self.reasons)}


def survey_route(
    paths: Sequence[str],
    codecs: Mapping[str, CodecLimits],
    *,
    max_files: int = MAX_FILES,
    max_seconds: float = MAX_SECONDS,
) -> Route:
    """Index a sample of the files (at least one) and judge each. Their indices stay in the cache,
    for the clips that are read next."""
    different = list(dict.fromkeys(paths))
    evenly = np.linspace(0, len(different) - 1, min(max_files, len(different))).astype(int).tolist()
    # In an order that spreads over the list from the start, should time run out.
    chosen = [number for step in range(8) for number in evenly[step::8]]
    reasons: Counter[str] = Counter()
    num_seen = num_nvdec = 0
    ends_seconds = time.monotonic() + max_seconds
    for number in chosen:
        num_seen += 1
        try:
            reason = why_on_cpu(index_video(different[number]), codecs)
        except UnreadableVideo:
            continue
        num_nvdec += not reason
        if reason:
            reasons[reason] += 1
        if time.monotonic() > ends_seconds:
            break
    return Route(len(different), num_seen, num_nvdec, dict(reasons))


def decoding_facts(device: torch.device, *, num_pipelines: int, route: Callable[[], Route]) -> dict[str, Any]:
    """What decodes for a device, for JSON: {"decoder": "PyAV"} on a CPU; on a GPU also what its
    NVDEC decodes, and the route of the files."""
    if device.type != "cuda":
        return {"decoder": "PyAV"}
    nvdec = find_nvdec(device)
    if not nvdec.codecs:
        return {"decoder": "PyAV", "nvdec": nvdec.as_json()}
    return {"decoder": "NVDEC", "pipelines": num_pipelines, "nvdec": nvdec.as_json(), "route": route().as_json()}
