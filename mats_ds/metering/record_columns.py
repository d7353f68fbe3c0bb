"""Many records at once as columns of numbers: lines of JSON -> one float64 array a field. For
reports on long runs.

Some hundred lines are parsed and checked in one call of pydantic's validator, which builds nothing
but the fields that are asked for: a third of the time of the standard library's parser, which
checks nothing. A line passes here if `parse_record` takes it, as far as the fields that are asked
for go: the same types, the same limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import numpy as np
from pydantic_core import SchemaValidator, ValidationError, core_schema

from mats_ds.core.limits import MAX_FLOAT, limits_of
from mats_ds.core.run_dir import SCHEMA
from mats_ds.metering.step_record import MAY_BE_NON_FINITE, StepRecord

_DECLARED = {field.name: str(field.type) for field in fields(StepRecord)}
_ALWAYS = ("schema", "step", "loss")


@dataclass(frozen=True)
class Columns:
    """Consecutive records of one rank: `values[name]` is float64, NaN where the record has null.
    Exact for integers below 2^53 (bytes of any machine). `lost` marks records whose loss was
    measured and is no finite number."""

    values: dict[str, np.ndarray]
    lost: np.ndarray

    def __len__(self) -> int:
        return len(self.lost)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    @cached_property
    def steps(self) -> np.ndarray:
        """int64."""
        return self.values["step"].astype(np.int64)

    def select(self, chosen: np.ndarray | slice) -> Columns:
        """The chosen records, by a mask or a slice."""
        return Columns({name: column[chosen] for name, column in self.values.items()}, self.lost[chosen])


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Parts of the same fields, one after the other."""
    if len(parts) == 1:
        return parts[0]
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Columns(values, np.concatenate([part.lost for part in parts]))


def parse_lines(lines: Sequence[bytes], names: Sequence[str]) -> Iterator[Columns | int]:
    """The columns `names` (and "step", "loss") of some lines; for an unreadable line its number
    instead, from 0."""
    wanted = tuple(dict.fromkeys((*_ALWAYS, *names)))
    trees = _validate(lines, wanted)
    if trees is not None:
        yield _to_columns(trees, wanted)
        return
    sound: list[dict[str, float | None]] = []
    # one by one: bisecting takes nine times as long where most are at fault
    for number, line in enumerate(lines):
        trees = _validate([line], wanted)
        if trees is not None:
            sound += trees
            continue
        if sound:
            yield _to_columns(sound, wanted)
            sound = []
        yield number
    if sound:
        yield _to_columns(sound, wanted)


def _validate(lines: Sequence[bytes], names: tuple[str, ...]) -> list[dict[str, float | None]] | None:
    """One object a line; None where that fails."""
    try:
        trees = _make_validator(names).validate_json(b"[" + b",".join(lines) + b"]")
    except ValidationError:
        return None
    return trees if len(trees) == len(lines) else None


def _to_columns(trees: list[dict[str, float | None]], names: tuple[str, ...]) -> Columns:
    # The validator builds its dicts in the order of `names`; an older record lacks fields that may
    # be missing.
    complete = set(map(len, trees)) == {len(names)}
    rows = map(dict.values, trees) if complete else (map(tree.get, names) for tree in trees)
    values = dict(zip(names, zip(*rows, strict=True), strict=True))
    losses = values["loss"]
    # None becomes NaN
    columns = {name: np.array(column, dtype=np.float64) for name, column in values.items()}
    for name in MAY_BE_NON_FINITE:
        if name in columns:  # beyond what a loss is computed in: as good as infinite
            column = columns[name]
            beyond = np.abs(column) > MAX_FLOAT
            column[beyond] = np.copysign(np.inf, column[beyond])
    lost = ~np.isfinite(columns["loss"])
    if lost.any():
        lost &= np.array([loss is not None for loss in losses])
    return Columns(columns, lost)


@lru_cache(maxsize=4)
def _make_validator(names: tuple[str, ...]) -> SchemaValidator:
    """Checks a JSON list of records for these fields, with the types that StepRecord declares."""
    record = core_schema.typed_dict_schema({name: _declare(name) for name in names}, extra_behavior="ignore")
    return SchemaValidator(core_schema.list_schema(record))


def _declare(name: str) -> core_schema.TypedDictField:
    kind, _, optional = _DECLARED[name].partition(" | ")
    least, greatest = limits_of(name, kind)
    if kind == "int":
        schema = core_schema.int_schema(strict=True, ge=least, le=SCHEMA if name == "schema" else greatest)
    elif name in MAY_BE_NON_FINITE:
        schema = core_schema.float_schema()  # not strict: "nan" is a text in JSON
    else:
        schema = core_schema.float_schema(strict=True, ge=least, le=greatest, allow_inf_nan=False)
    return core_schema.typed_dict_field(core_schema.nullable_schema(schema) if optional else schema, required=not optional)
