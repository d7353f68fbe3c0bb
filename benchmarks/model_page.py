"""The page of `model.py`: rows of measurements -> a Markdown table, and what they say about the
goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from mats_ds.metering.peak_flops import find_peak

PEER = "Hugging Face VideoMAE"
PLAIN = "mats_ds, recompute none"
# Goals: time against the peer, by task and size, and MB a clip of ViT-S in float32.
GOAL_TIME = {("pretrain", "small"): 0.40, ("pretrain", "base"): 0.50, ("finetune", "small"): 0.52, ("finetune", "base"): 0.52}
GOAL_MEGABYTES = {("pretrain", "small"): 30, ("finetune", "small"): 110}
GOAL_EXTRA_FLOPS = {"pretrain": 0.09, "finetune": 0.08}
GOAL_SELECTION_SHARE = 0.03


@dataclass
class Row:
    """One way to compute a step: bytes and multiply-adds of one clip, and seconds of one clip by
    number of threads."""

    name: str
    kept_bytes: float = 0.0
    forward_macs: int = 0
    useful_macs: int = 0
    hardware_macs: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def best(self, threads: str) -> float:
        return min(self.seconds[threads])


def ratio(row: Row, peer: Row, threads: str) -> float:
    """Median over the rounds of this row's time divided by the peer's in the same round."""
    return statistics.median(ours / theirs for ours, theirs in zip(row.seconds[threads], peer.seconds[threads], strict=True))


def table_of(rows: Iterable[Row], device_name: str) -> list[str]:
    """One Markdown table."""
    rows = list(rows)
    peer = next((row for row in rows if row.name == PEER), None)
    threads = list(rows[0].seconds)
    peak = find_peak(device_name)
    label = {count: f"ms a clip, {count} thread{'s' if count != '1' else ''}" for count in threads}
    heads = ["model", "kept for backward, MB a clip", "forward GMACs", "step GMACs executed"]
    for count in threads:
        heads += [label[count] if peak is None else "ms a clip", "x the peer's"]
    if peak is not None:
        heads.append("clips/s, MFU")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row.name, f"{row.kept_bytes / 1e6:.1f}", _giga(row.forward_macs), _giga(row.hardware_macs)]
        for count in threads:
            cells += [f"{1e3 * row.best(count):.4g}", f"{ratio(row, peer, count):.3f}" if peer else "-"]
        if peak is not None:
            rate = 1 / row.best(threads[0])
            used = 2 * (row.useful_macs or row.hardware_macs) * rate / peak.flops_per_second
            cells.append(f"{rate:.0f}, {used:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def judge(task: str, name: str, rows: list[Row], scoring: dict[str, float], *, on_gpu: bool) -> list[str]:
    """The goals that this table answers, and whether they are met."""
    by_name = {row.name: row for row in rows}
    peer, plain, lean = by_name.get(PEER), by_name[PLAIN], by_name["mats_ds, recompute mlp"]
    lines = []
    if peer is not None and (task, name) in GOAL_TIME:
        for threads in plain.seconds:
            value, goal = ratio(plain, peer, threads), GOAL_TIME[task, name]
            lines.append(_verdict(f"step time against the peer, {threads} thread(s): {value:.3f}", f"<= {goal}", value <= goal))
    if not on_gpu and (task, name) in GOAL_MEGABYTES:
        megabytes, extra = lean.kept_bytes / 1e6, lean.hardware_macs / plain.hardware_macs - 1
        met = megabytes <= GOAL_MEGABYTES[task, name] and extra <= GOAL_EXTRA_FLOPS[task]
        goal = f"<= {GOAL_MEGABYTES[task, name]} MB at <= {GOAL_EXTRA_FLOPS[task]:.0%}"
        lines.append(_verdict(f"recompute mlp keeps {megabytes:.1f} MB a clip for {extra:.1%} more arithmetic", goal, met))
    selection = scoring["scoring and selection"] - scoring["embedding for it"]
    lines.append(
        _verdict(
            f"distances, ranking and draws take {selection:.1%} of a step, the embedding of all tokens that they look at "
            f"{scoring['embedding for it']:.1%}",
            f"selection < {GOAL_SELECTION_SHARE:.0%}",
            selection < GOAL_SELECTION_SHARE,
        )
    )
    return lines


def _verdict(measured: str, goal: str, met: bool) -> str:
    return f"- {measured} (goal: {goal}): {'met' if met else 'missed'}"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.1f}" if macs else "-"
