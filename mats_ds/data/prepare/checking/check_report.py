"""CheckResult -> what a person should know of the videos before training, in words; and the progress while they are checked."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from tqdm import tqdm

from mats_ds.core.text import clean_line
from mats_ds.data.prepare.checking.check_file import CLIP_FRAMES, CLIP_STRIDE, FileFacts
from mats_ds.data.prepare.checking.check_set import CheckResult
from mats_ds.data.prepare.copying.copy_plan import show_bytes

LONG_GOP_FRAMES = 32  # below that, shorter ones were measured to save nothing more
NUM_SHOWN = 5
PRINT_SECONDS = 10.0
FALLBACK_COLUMNS = 100  # for terminals that do not tell their width


class CheckProgress:
    """Call it with (files done, files, bad ones): a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm | None = None
        self._began_seconds = self._printed_seconds = time.monotonic()
        self._num_known: int | None = None

    def __call__(self, num_done: int, num_files: int, num_bad: int) -> None:
        if self._num_known is None:
            self._num_known = num_done
            if num_done:
                print(
                    f"check: {num_done} of {num_files} files need no decoding: an earlier check did it, or they do not exist",
                    file=self._stream,
                    flush=True,
                )
        if self._stream.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=num_files, initial=num_done, desc="check", unit="file", file=self._stream, **_width(self._stream)
                )
            self._bar.set_postfix_str(f"{num_bad} bad", refresh=False)
            self._bar.update(num_done - self._bar.n)
            return
        now_seconds = time.monotonic()
        if now_seconds - self._printed_seconds >= PRINT_SECONDS:
            self._printed_seconds = now_seconds
            speed = (num_done - self._num_known) / (now_seconds - self._began_seconds)
            print(f"check: {num_done} of {num_files} files, {num_bad} bad, {speed:.1f} files/s", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _width(stream: TextIO) -> dict[str, object]:
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": FALLBACK_COLUMNS}


def summarize(result: CheckResult) -> str:
    """The whole text, ready to be printed."""
    facts = list(result.facts.values())
    parts = [_say_total(result, facts)]
    if facts:
        parts += [
            _table_of_codecs(facts),
            _say_routes(facts),
            _say_frames(facts),
            _say_keyframes(facts),
            _say_sizes(facts),
            _say_speed(result.facts),
            _say_warnings(result.facts),
        ]
    parts.append(_say_bad(result))
    return "\n".join(part for part in parts if part)


def _say_total(result: CheckResult, facts: Sequence[FileFacts]) -> str:
    seconds, num_bytes = sum(fact.duration_seconds for fact in facts), sum(fact.bytes for fact in facts)
    unit, unit_seconds = _unit_of_time(facts)
    known = len(facts) - result.num_decoded
    return (
        f"{len(facts)} readable {_files(len(facts))}: {seconds / unit_seconds:.1f} {unit}, {show_bytes(num_bytes)}. "
        f"{result.num_decoded} {_files(result.num_decoded)} decoded in {result.wall_seconds:.0f} s"
        + (", the others were known." if known > 0 else ".")
    )


def _unit_of_time(facts: Sequence[FileFacts]) -> tuple[str, int]:
    return ("hours", 3600) if sum(fact.duration_seconds for fact in facts) >= 3600 else ("minutes", 60)


def _table_of_codecs(facts: Sequence[FileFacts]) -> str:
    unit, unit_seconds = _unit_of_time(facts)
    lines = [f"  {'codec':<10}{'files':>8}{unit:>10}{'NVDEC (GPU)':>14}{'PyAV (CPU)':>13}"]
    for codec, num_files in Counter(fact.codec for fact in facts).most_common():
        mine = [fact for fact in facts if fact.codec == codec]
        length = sum(fact.duration_seconds for fact in mine) / unit_seconds
        num_cpu = sum(bool(fact.cpu_reason) for fact in mine)
        lines.append(f"  {codec:<10}{num_files:>8}{length:>10.1f}{num_files - num_cpu:>14}{num_cpu:>13}")
    return "\n".join(lines)


def _say_routes(facts: Sequence[FileFacts]) -> str:
    reasons = Counter(fact.cpu_reason for fact in facts if fact.cpu_reason)
    said = (
        "The table is for training with a GPU: DALI decodes the files of its NVDEC column there, PyAV the others on the CPU.\n"
        "  Without a GPU, PyAV decodes all of them on the CPU. The frames are the same."
    )
    if reasons:
        listed = ", ".join(f"{reason} ({num_files})" for reason, num_files in reasons.most_common())
        said += (
            f"\n  Left to the CPU because of: {listed}.\n"
            "  What to do, if they are many: `python mats_ds/prepare.py transcode` makes upright 8-bit copies, which NVDEC takes."
        )
    return said


def _say_frames(facts: Sequence[FileFacts]) -> str:
    num_vfr = sum(fact.vfr for fact in facts)
    rates = [fact.fps for fact in facts]
    span = CLIP_FRAMES * CLIP_STRIDE
    num_short = sum(fact.num_frames < span for fact in facts)
    num_shorter = sum(fact.num_frames < CLIP_FRAMES for fact in facts)
    said = f"Frame rate: median {statistics.median(rates):.4g} per second, {min(rates):.3g} to {max(rates):.3g}"
    said += (
        f". Within {num_vfr} {_files(num_vfr)} it varies: clip.stride counts frames there, clip.stride_seconds (if set) time."
        if num_vfr
        else "."
    )
    if num_short:
        said += (
            f"\nShort: {num_short} {_files(num_short)} of fewer than {span} frames ({CLIP_FRAMES} at stride {CLIP_STRIDE}): "
            f"clips of them take frames that lie closer together; {num_shorter}, below {CLIP_FRAMES} frames, repeat some."
        )
    return said


def _say_keyframes(facts: Sequence[FileFacts]) -> str:
    gops = [fact.gop for fact in facts]
    median = statistics.median(gops)
    said = f"Keyframes: every {median:.0f} frames (median; {min(gops)} to {max(gops)})."
    if median > LONG_GOP_FRAMES:
        num_long = sum(gop > LONG_GOP_FRAMES for gop in gops)
        said += (
            f" {num_long} {_files(num_long)} are above {LONG_GOP_FRAMES}: a clip costs about twice the decoding that it would "
            "with close keyframes.\n  What to do: `python mats_ds/prepare.py transcode`, once, before long trainings."
        )
    return said


def _say_sizes(facts: Sequence[FileFacts]) -> str:
    sizes = Counter((fact.width, fact.height) for fact in facts)
    largest = sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)[:NUM_SHOWN]
    return "Largest pictures: " + ", ".join(f"{width}x{height} ({sizes[width, height]})" for width, height in largest) + "."


def _say_speed(facts: dict[str, FileFacts]) -> str:
    mean_seconds = statistics.fmean(fact.clip_seconds for fact in facts.values())
    cost = {path: 1000 * fact.decode_seconds / fact.duration_seconds for path, fact in facts.items()}
    slowest = sorted(cost, key=cost.__getitem__, reverse=True)[:NUM_SHOWN]
    return "\n".join(
        [
            f"Speed: one core decodes {1 / max(mean_seconds, 1e-6):.1f} clips/s with PyAV ({CLIP_FRAMES} frames at stride "
            f"{CLIP_STRIDE}, mean over the files, measured on this machine during the check).",
            "Slowest, in CPU ms to decode one second of video:",
            *(
                f"  {cost[path]:>6.0f}  {clean_line(path)} ({facts[path].codec}, {facts[path].width}x{facts[path].height})"
                for path in slowest
            ),
        ]
    )


def _say_warnings(facts: dict[str, FileFacts]) -> str:
    warned = [(path, warning) for path, fact in facts.items() for warning in fact.warnings]
    if not warned:
        return ""
    return "Warnings (readable all the same; column `warnings`):\n" + _group(warned)


def _say_bad(result: CheckResult) -> str:
    if not result.bad:
        return f"Quarantine: none of {result.num_rows} rows."
    grouped = _group((row.path, row.reason) for row in result.bad)
    return f"Quarantine: {len(result.bad)} of {result.num_rows} rows.\n{grouped}"


def _group(told: Iterable[tuple[str, str]]) -> str:
    """One entry for all that differ only in numbers: how many, the first one's words, its file."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, words in told:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", words), []).append((path, words))
    lines = []
    for members in sorted(groups.values(), key=len, reverse=True):
        path, words = members[0]
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        lines.append(f"  {len(members):>6}  {clean_line(words)}\n          {clean_line(path)}{others}")
    return "\n".join(lines)


def _files(count: int) -> str:
    return "file" if count == 1 else "files"
