"""Speed-up of decoding a training copy instead of its original, in CPU time, measured on a few
files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mats_ds.core.clips import ClipSpec
from mats_ds.data.loading.reader import read_decoded
from mats_ds.data.video.indexing import UnreadableVideo, index_video

NUM_FRAMES, STRIDE, SIZE = 16, 4, (224, 224)  # the default recipe's clip
STARTS = (0.1, 0.5, 0.9)
NUM_REPEATS = 2
MAX_FILES = 8


@dataclass(frozen=True)
class DecodeSpeed:
    """Median over `num_files` files of the CPU milliseconds for one clip, and of the ratio original
    / copy."""

    num_files: int
    original_ms: float
    copy_ms: float
    ratio: float


def measure_decode_speed(pairs: Sequence[tuple[str, str]]) -> DecodeSpeed | None:
    """Decode clips of (original, copy) pairs as training does, at most MAX_FILES spread over the
    list. None without any."""
    step = max(1, -(-len(pairs) // MAX_FILES))
    times = []
    for original, copy in pairs[::step]:
        try:
            times.append((_clip_ms(original), _clip_ms(copy)))
        except UnreadableVideo:
            continue
    if not times:
        return None
    return DecodeSpeed(
        num_files=len(times),
        original_ms=median(before for before, _ in times),
        copy_ms=median(after for _, after in times),
        ratio=median(before / after for before, after in times),
    )


def _clip_ms(path: str) -> float:
    """CPU milliseconds for a clip, the best of a few tries, averaged over clips from several
    offsets. Raises UnreadableVideo."""
    index_video(path)  # a trainer reads it once and remembers it
    total_seconds = 0.0
    for start in STARTS:
        spec = ClipSpec(path=path, sample=0, num_frames=NUM_FRAMES, stride=STRIDE, start=start)
        tries = []
        for _ in range(NUM_REPEATS):
            before = time.process_time()
            read_decoded(spec, size=SIZE)
            tries.append(time.process_time() - before)
        total_seconds += min(tries)
    return max(1e-3, 1000 * total_seconds / len(STARTS))
