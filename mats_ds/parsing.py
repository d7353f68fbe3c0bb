"""Text of files that may be somebody else's -> plain values: JSON and YAML, with one kind of error for all that is wrong with it.

No code runs and no object but dictionaries, lists, texts, numbers and dates comes out. Text that is nested thousands deep ends a
JSON or YAML reader with RecursionError; YAML whose names stand for each other (`*a`) unfolds a few lines into more values than
any memory holds. Both are refused.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

NESTED = "it is nested too deeply"


class _PlainLoader(yaml.SafeLoader):
    """The safe loader without references to earlier values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: *names of earlier values are not supported")
        return super().compose_node(parent, index)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(NESTED) from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises ValueError."""
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError:
        raise ValueError(NESTED) from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:  # of `!!int a` and the like
        raise ValueError(str(error) or type(error).__name__) from None
