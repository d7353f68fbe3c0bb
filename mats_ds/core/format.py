"""Numbers as text for people: bytes, FLOPs, times, counts."""

from __future__ import annotations

GIB, MIB = 2**30, 2**20
SMALLEST, LARGEST = 1e-30, 1e21
MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
LONGEST_SECONDS = 10_000 * 365.25 * DAY


def format_bytes(num_bytes: float) -> str:
    """Bytes for people: "1.50 TiB", "61.25 GiB", "49.2 MiB", "3.1 KiB", "17 B"."""
    for unit, name, digits in ((2**40, "TiB", 2), (GIB, "GiB", 2), (2**20, "MiB", 1), (2**10, "KiB", 1)):
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.{digits}f} {name}"
    return f"{num_bytes:.0f} B"


def format_flops(flops: float) -> str:
    """ "120 GFLOP", "3.25 TFLOP", "179.5 EFLOP"; a rate takes "/s" behind it."""
    for unit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if flops >= unit:
            return f"{format_figure(flops / unit)} {prefix}FLOP"
    return f"{format_figure(flops / 1e6)} MFLOP"


def format_figure(value: float, digits: int = 4) -> str:
    """A number with that many significant digits and, where it is large, all before the point:
    "0.01235", "3.142", "179,512,340"; beyond anything that is counted "8.458e+303"."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < LARGEST else text


def format_duration(seconds: float) -> str:
    """A length of time in two units at most: "under 1 s", "45 s", "12 min", "3 h 20 min", "5 days
    7 h", "over 10,000 years"."""
    if not seconds < LONGEST_SECONDS:
        return "over 10,000 years"
    if seconds < 2 * MINUTE:
        return "under 1 s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        minutes = round(seconds / MINUTE)
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / HOUR)
    return f"{hours // 24:,} days {hours % 24} h" if hours < 24 * 100 else f"{hours // 24:,} days"


def format_seconds(seconds: float) -> str:
    """How long a piece of work took: "under 0.1 s", "3.2 s", "1,250 s"."""
    if seconds < 0.1:
        return "under 0.1 s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def format_part(ratio: float, noun: str) -> str:
    """ "30% of the tokens", or "all tokens"."""
    return f"all {noun}" if ratio == 1 else f"{100 * ratio:.3g}% of the {noun}"


def format_count(number: int, noun: str) -> str:
    """ "1 step", "12,000 steps", "2 classes", "0 copies"; of a noun of several words the last has
    the plural."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """ "steps", "batches", "entries", "days"."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def format_all(number: int, noun: str) -> str:
    """ "all 12,000 steps", or "its only step"."""
    return f"its only {noun}" if number == 1 else f"all {format_count(number, noun)}"


def format_views(clips: int, crops: int) -> str:
    """The views of a video, clips x crops: "1 x 1 view", "5 x 3 views"."""
    return f"{clips:,} x {format_count(crops, 'view')}" if clips * crops == 1 else f"{clips:,} x {crops:,} views"


def ratio_of(over: float | None, under: float | None) -> float | None:
    """`over` / `under`; None where one is not known, or `under` is so near to 0 that a ratio says
    nothing."""
    if over is None or under is None or abs(under) < SMALLEST:
        return None
    return over / under


def shorten(text: str, most: int = 400) -> str:
    """The beginning of a text of any length, with the length of a longer one."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
