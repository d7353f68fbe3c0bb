"""Limits of the numbers and texts in a run folder: values outside were written by no run and are
refused.

Without limits one number of a foreign file (`world_size` 1e9, a step time of NaN) decides how long
a report takes, how much memory, and whether every figure after it is nonsense.
"""

from __future__ import annotations

from typing import Any

MAX_RANKS = 10_000
MAX_STEP = 10**15 - 1  # times the points of a curve it still fits into an int64
MAX_BYTES = 2**53 - 1  # of one process; all of them are exact as a float64
MAX_SECONDS = 1e9  # of one step: 31 years
MAX_UNIX_SECONDS = 1e11  # the year 5138
MAX_INTEGER = 2**63 - 1
MAX_FLOAT = 3.4028234663852886e38  # of IEEE 754's binary32, in which losses and norms are computed
MAX_NAME = 5_000  # characters of a name, a path or a version
MAX_ENTRIES, MAX_KEY = 200, 200  # versions or kinds of memory, and the characters of their names
MAX_DEPTH = 6  # of facts in objects and lists, one in the other
LONG_TEXTS = ("command", "run_dir", "outcome", "advice", "snapshot")  # as long as their file may be

_BY_NAME: dict[str, tuple[float, float]] = {
    "rank": (0, MAX_RANKS - 1),
    "world_size": (1, MAX_RANKS),
    "zero_stage": (0, 3),
    "loss": (-MAX_FLOAT, MAX_FLOAT),
    "grad_norm": (-MAX_FLOAT, MAX_FLOAT),
    "learning_rate": (-MAX_FLOAT, MAX_FLOAT),
    "unix_seconds": (0, MAX_UNIX_SECONDS),
    "peak_flops": (1e3, 1e24),  # a divisor: a figure near 0 would make others infinite
    "clips_per_second": (0, 1e12),
    **dict.fromkeys(("mfu", "hfu", "memory_error"), (0, 1e6)),
    **dict.fromkeys(("step", "first_step", "last_step", "total_steps", "steps_per_epoch", "epoch"), (0, MAX_STEP)),
}


def limits_of(name: str, kind: str) -> tuple[float, float]:
    """The least and the greatest value of a field; `kind`: as declared, "int", "float", or one of
    them "| None"."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.endswith("_bytes"):
        return 0, MAX_BYTES
    if name.endswith("_seconds"):
        return 0, MAX_SECONDS
    return 0, MAX_INTEGER if kind.startswith("int") else MAX_FLOAT


def find_fault(name: str, value: Any, kind: str) -> str | None:
    """A sentence on what is wrong with the value of a field of the declared type; None where
    nothing is."""
    kind, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
            return f"{name} is of another type, a number was expected"
        least, greatest = limits_of(name, kind)
        return None if least <= value <= greatest else f"{name} is {show(value)}, which is not from {least:g} to {greatest:g}"
    if kind == "str":
        if not isinstance(value, str):
            return f"{name} is of another type, a text was expected"
        long = len(value) > MAX_NAME and name not in LONG_TEXTS
        return f"{name} has {len(value):,} characters, at most {MAX_NAME:,} were expected" if long else None
    if kind == "dict[str, Any]":
        return find_tree_fault(name, value) if isinstance(value, dict) else f"{name} is no object"
    if kind.startswith("dict"):
        if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
            return f"{name} is no object of at most {MAX_ENTRIES} entries"
        of_bytes, inner = kind == "dict[str, int]", "int" if kind == "dict[str, int]" else "str"
        faults = (find_fault("one_of_the_bytes" if of_bytes else name, entry, inner) for entry in value.values())
        if any(len(key) > MAX_KEY for key in value):
            return f"{name} has a name of more than {MAX_KEY} characters"
        return next((f"{name}: {fault}" for fault in faults if fault), None)
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or len(value) > MAX_ENTRIES:
            return f"{name} is no list of at most {MAX_ENTRIES} texts"
        return next((fault for fault in (find_fault(name, text, "str") for text in value) if fault), None)
    if kind == "bool":
        return None if isinstance(value, bool) else f"{name} is of another type, true or false was expected"
    raise AssertionError(f"{name} is declared as {kind}, which is not checked")


def find_tree_fault(name: str, value: Any, *, depth: int = 0) -> str | None:
    """A sentence on what is wrong with facts in objects and lists, one in the other; None where
    nothing is."""
    if isinstance(value, (dict, list, tuple)):
        if len(value) > MAX_ENTRIES or depth == MAX_DEPTH:
            return f"{name} is deeper than {MAX_DEPTH} or has an object or a list of more than {MAX_ENTRIES} entries"
        if isinstance(value, dict):
            if any(len(key) > MAX_KEY for key in value):
                return f"{name} has a name of more than {MAX_KEY} characters"
            value = value.values()
        return next((fault for inner in value if (fault := find_tree_fault(name, inner, depth=depth + 1))), None)
    if isinstance(value, str):
        return find_fault(name, value, "str")
    if value is None or isinstance(value, bool):
        return None
    is_number = isinstance(value, (int, float)) and -MAX_FLOAT <= value <= MAX_FLOAT
    return None if is_number else f"{name} has {show(value)}, which is no number from {-MAX_FLOAT:g} to {MAX_FLOAT:g}"


def show(value: Any) -> str:
    """Any value for a message: short, in one line."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, (int, float, str, bool)) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
