"""The key figures of a run, one card each: learning first, then speed, memory and work."""

from __future__ import annotations

from mats_ds.core.format import format_bytes, format_count, format_figure, format_flops
from mats_ds.reporting.budget import Budget
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.page.markup import card, number, small_unit
from mats_ds.reporting.report_text import describe_energy, describe_tokens


def build_cards(figures: Figures, budget: Budget) -> str:
    """All cards, in rows of equal length where that can be."""
    cards = [*_cards_of_learning(figures), *_cards_of_speed(figures), _card_of_memory(figures, budget), *_cards_of_work(figures)]
    columns = next((columns for columns in (5, 4, 3) if len(cards) % columns == 0), 4)
    return f'<section class="cards by{columns}" aria-label="key figures">{"".join(cards)}</section>\n'


def _cards_of_learning(figures: Figures) -> list[str]:
    first, last = figures.losses
    cards = [card("Loss", number(last), f"from {number(first)}" + (", not always finite" if figures.num_not_finite else ""))]
    if tests := figures.files.tests:
        best = max(tests, key=lambda test: test.top1)
        note = f"after step {tests[-1].step:,}; best of {format_count(len(tests), 'test')} {100 * best.top1:.1f}%"
        cards.append(card("Top-1 in the last test", f"{100 * tests[-1].top1:.1f}%", note))
    return cards


def _cards_of_speed(figures: Figures) -> list[str]:
    waiting = figures.phase_fractions["data"]
    num_steps = format_count(figures.span.num_steps, "step")
    cards = [
        card("Clips a second", number(figures.clips_per_second), "median of the steps, all ranks together"),
        card("Step", f"{number(figures.step_seconds)} <small>s</small>", f"{num_steps}, median of the slowest rank"),
        card("Waiting for data", f"{100 * waiting:.1f}%", "of the time of a step", waiting),
    ]
    if figures.balance is not None:
        fraction = figures.balance.lost_fraction
        # which rank that is, and whether by more than chance, is said below the table of ranks
        cards.append(card("Waiting for the last rank", f"{100 * fraction:.1f}%", "of a step, on average", fraction))
    return cards


def _card_of_memory(figures: Figures, budget: Budget) -> str:
    peak_bytes = figures.worst_rank.peak_bytes
    if not figures.on_gpu:
        return card("Peak memory", small_unit(format_bytes(peak_bytes)), "of the largest process on the host; no GPU was used")
    fraction = peak_bytes / budget.memory_per_gpu_bytes
    note = f"{100 * fraction:.1f}% of {format_bytes(budget.memory_per_gpu_bytes)}, the budget of a GPU"
    return card("Peak memory of a GPU", small_unit(format_bytes(peak_bytes)), note, fraction)


def _cards_of_work(figures: Figures) -> list[str]:
    """Tokens, FLOPs, and energy where the driver reports it."""
    info = figures.run.info
    utilization, achieved = figures.model_flops_utilization, figures.model_flops_per_second
    why_not = "peak of the GPU not known, no MFU" if figures.on_gpu else "no MFU on a CPU"
    mfu = why_not if utilization is None else f"{100 * utilization:.1f}% of the peak (MFU)"
    cards = [
        card("Tokens kept", f"{info.kept:,} <small>of {info.num_tokens:,}</small>", describe_tokens(figures).partition(": ")[2]),
        card(
            "Forward pass",
            f"{format_figure(info.forward_macs_per_clip / 1e9)} <small>GMAC</small>",
            "a clip; papers call it GFLOPs",
        ),
        card("Achieved", "?" if achieved is None else small_unit(f"{format_flops(achieved)}/s"), f"a rank; {mfu}"),
    ]
    if figures.joules_per_clip is not None:
        figure, _, note = describe_energy(figures).partition(" a clip, ")
        cards.append(card("Energy of a clip", small_unit(figure), note))
    return cards
