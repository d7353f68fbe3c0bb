"""CheckResult -> text: codecs, frame rates, keyframes, sizes, speed and bad files, and the files
written."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mats_ds.core.clips import DAMAGED
from mats_ds.core.format import format_bytes, format_count
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import clean_line, quote_word
from mats_ds.data.prepare.checking.check_file import CLIP_FRAMES, CLIP_STRIDE, FileFacts
from mats_ds.data.prepare.checking.check_set import CheckResult
from mats_ds.data.prepare.checking.check_tables import QUARANTINE

LONG_GOP_FRAMES = 32  # below that, shorter ones were measured to save nothing more
NUM_SHOWN = 5


def summarize(result: CheckResult, *, out: Path, root: str | None = None) -> str:
    """Text of several lines about the files, the rows in quarantine included.

    out: the manifest of the readable ones, root: the folder that its paths start from; for the
    commands that are advised.
    """
    copying = own_command("prepare", "transcode", out, *(("--root", root) if root else ()), "--out", out.with_name("copies"))
    facts = list(result.facts.values())
    parts = [_describe_total(result, facts)]
    if facts:
        parts += [
            _table_of_codecs(facts),
            _describe_routes(facts, copying=copying),
            _describe_frames(facts),
            _describe_keyframes(facts, copying=copying),
            _describe_sizes(facts),
            _describe_speed(result.facts),
            _describe_warnings(result.facts),
        ]
    parts.append(_describe_bad(result))
    return "\n".join(part for part in parts if part)


def describe_outputs(result: CheckResult, out: Path, *, root: str | None = None, chose_quarantine: bool = True) -> list[str]:
    """Lines about the files written, and how to train with them.

    root: the folder that their paths start from. chose_quarantine: whether the check chose the name
    of the quarantine.
    """
    use = quote_word(f"data.manifest={out}") + (f" {quote_word(f'data.root={root}')}" if root else "")
    how = f"train with {use}" if result.facts else "no row is left to train on"
    lines = [f"Written: {out} ({how})" + (f", {result.quarantine}" if result.bad else "")]
    if chose_quarantine and result.quarantine.name != QUARANTINE:
        lines.append(f"The quarantine is {result.quarantine}: {QUARANTINE} beside it is of something else.")
    return lines + [f"What was there before, from version 0.1, is kept as {path}." for path in result.kept]


def _describe_total(result: CheckResult, facts: Sequence[FileFacts]) -> str:
    seconds, num_bytes = sum(fact.duration_seconds for fact in facts), sum(fact.bytes for fact in facts)
    unit, unit_seconds = _unit_of_time(facts)
    known = len(facts) - result.num_decoded
    return (
        f"{format_count(len(facts), 'readable file')}: {seconds / unit_seconds:,.1f} {unit}, {format_bytes(num_bytes)}. "
        f"{format_count(result.num_decoded, 'file')} decoded in {result.wall_seconds:.0f} s"
        + (", the others were known." if known > 0 else ".")
    )


def _unit_of_time(facts: Sequence[FileFacts]) -> tuple[str, int]:
    seconds = sum(fact.duration_seconds for fact in facts)
    return ("hours", 3600) if seconds >= 3600 else ("minutes", 60) if seconds >= 600 else ("seconds", 1)


def _table_of_codecs(facts: Sequence[FileFacts]) -> str:
    unit, unit_seconds = _unit_of_time(facts)
    lines = [f"  {'codec':<10}{'files':>8}{unit:>10}{'NVDEC (GPU)':>14}{'PyAV (CPU)':>13}"]
    for codec, num_files in Counter(fact.codec for fact in facts).most_common():
        mine = [fact for fact in facts if fact.codec == codec]
        length = sum(fact.duration_seconds for fact in mine) / unit_seconds
        num_cpu = sum(bool(fact.cpu_reason) for fact in mine)
        lines.append(f"  {codec:<10}{num_files:>8,}{length:>10,.1f}{num_files - num_cpu:>14,}{num_cpu:>13,}")
    return "\n".join(lines)


def _describe_routes(facts: Sequence[FileFacts], *, copying: str) -> str:
    reasons = Counter(fact.cpu_reason for fact in facts if fact.cpu_reason)
    text = (
        "The table is for training with a GPU: DALI decodes the files of its NVDEC column there, PyAV the others on the CPU.\n"
        "  Without a GPU, PyAV decodes all of them on the CPU. The frames are the same."
    )
    if reasons:
        listed = ", ".join(f"{reason} ({num_files:,})" for reason, num_files in reasons.most_common())
        text += (
            f"\n  Left to the CPU because of: {listed}.\n"
            f"  What to do, if they are many: `{copying}` makes upright 8-bit copies, which NVDEC takes."
        )
    return text


def _describe_frames(facts: Sequence[FileFacts]) -> str:
    num_vfr = sum(fact.vfr for fact in facts)
    rates = [fact.fps for fact in facts]
    span = CLIP_FRAMES * CLIP_STRIDE
    num_short = sum(fact.num_frames < span for fact in facts)
    num_shorter = sum(fact.num_frames < CLIP_FRAMES for fact in facts)
    text = f"Frame rate: median {statistics.median(rates):.4g} per second, {min(rates):.3g} to {max(rates):.3g}"
    text += (
        f". Within {format_count(num_vfr, 'file')} it varies: clip.stride counts frames there, clip.stride_seconds (if set) time."
        if num_vfr
        else "."
    )
    if num_short:
        text += (
            f"\nShort: {format_count(num_short, 'file')} of fewer than {span} frames ({CLIP_FRAMES} at stride {CLIP_STRIDE}): "
            f"clips of them take frames that lie closer together"
            + (f"; {num_shorter:,}, below {CLIP_FRAMES} frames, repeat some." if num_shorter else ".")
        )
    return text


def _describe_keyframes(facts: Sequence[FileFacts], *, copying: str) -> str:
    gops = [fact.gop for fact in facts]
    median = statistics.median(gops)
    text = f"Keyframes: every {median:.0f} frames (median; {min(gops)} to {max(gops)})."
    if median > LONG_GOP_FRAMES:
        num_long = sum(gop > LONG_GOP_FRAMES for gop in gops)
        text += (
            f" {format_count(num_long, 'file')} {'is' if num_long == 1 else 'are'} above {LONG_GOP_FRAMES}: a clip costs about "
            f"twice the decoding that it would with close keyframes.\n  What to do: `{copying}`, once, before long trainings."
        )
    return text


def _describe_sizes(facts: Sequence[FileFacts]) -> str:
    sizes = Counter((fact.width, fact.height) for fact in facts)
    largest = sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)[:NUM_SHOWN]
    return "Largest pictures: " + ", ".join(f"{width}x{height} ({sizes[width, height]})" for width, height in largest) + "."


def _describe_speed(facts: dict[str, FileFacts]) -> str:
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


def _describe_warnings(facts: dict[str, FileFacts]) -> str:
    damaged = [(path, fact.damage.removeprefix(DAMAGED)) for path, fact in facts.items() if fact.damage]
    warned = [(path, warning) for path, fact in facts.items() for warning in fact.warnings if warning != fact.damage]
    heads = {
        "Damaged in part (their rows are limited to what can be used; column `warnings`):": damaged,
        "Warnings (readable all the same; column `warnings`):": warned,
    }
    return "\n".join(f"{head}\n{_group(reasons)}" for head, reasons in heads.items() if reasons)


def _describe_bad(result: CheckResult) -> str:
    if not result.bad:
        return f"Quarantine: none of {format_count(result.num_rows, 'row')}."
    grouped = _group((row.path, row.reason) for row in result.bad)
    return f"Quarantine: {len(result.bad):,} of {format_count(result.num_rows, 'row')}.\n{grouped}"


def _group(reasons: Iterable[tuple[str, str]]) -> str:
    """One entry for all (path, reason) that differ only in numbers: how many, the first reason, its
    file."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, reason in reasons:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), []).append((path, reason))
    lines = []
    for members in sorted(groups.values(), key=len, reverse=True):
        path, reason = members[0]
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        lines.append(f"  {len(members):>6}  {clean_line(reason)}\n          {clean_line(path)}{others}")
    return "\n".join(lines)
