"""JSON and YAML text of files that may be somebody else's -> plain values; ValueError for all that
is wrong with it.

No code runs and no object but dictionaries, lists, texts, numbers and dates comes out. Text that is
nested thousands deep ends a JSON or YAML reader with RecursionError; YAML whose names stand for
each other (`*a`) unfolds a few lines into more values than any memory holds. Both are refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import yaml

NESTED = "it is nested too deeply"
MAX_YAML_BYTES = 200_000  # a recipe has 2,000; the reader makes a kilobyte of two brackets


class _PlainLoader(yaml.SafeLoader):
    """The safe loader without references to earlier values, and without a key of which the last one
    would count."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: *names of earlier values are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given more than once: keep one of them")
            seen.add(name)
        return super().construct_mapping(node, deep)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(NESTED) from None


def parse_strict_json(text: str | bytes) -> Any:
    """The value of a JSON document in which no object has a key twice and every number is finite.
    Raises ValueError.

    For what a person writes and a program obeys: Python's reader takes the last of two values, and
    NaN, which JSON has not.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_constant, parse_float=_make_float)
    except RecursionError:
        raise ValueError(NESTED) from None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = [repr(name) for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise ValueError(f"{', '.join(twice)} is given more than once in one object: keep one of them")
    return tree


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON: write a finite one, or leave the key out")


def _make_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond what a number can hold: write a finite one, or leave the key out")
    return number


def parse_yaml(text: str) -> Any:
    """The value of a YAML document of MAX_YAML_BYTES characters at most. Raises ValueError."""
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, expected {MAX_YAML_BYTES:,} at most")
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError:
        raise ValueError(NESTED) from None
    except yaml.MarkedYAMLError as error:  # its own text is four lines with a drawing
        problem = ", ".join(filter(None, (error.context, error.problem)))
        where = (
            "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: "
        )
        raise ValueError(f"{where}{problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:  # of `!!int a` and the like
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
