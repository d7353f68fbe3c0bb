"""Every message that the page quotes really is one of the code's."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.blocks import DOCS, ROOT

PAGE = DOCS / "troubleshooting.md"
QUOTED = re.findall(r"(?m)^- `(.+)`$", PAGE.read_text(encoding="utf-8"))
VALUE = "\0"  # stands for what a message fills in
FEWEST_LETTERS = 6  # of a quoted piece between two values


def list_texts() -> list[str]:
    """The string literals of the code, with VALUE for what is filled in; neighbours in one
    expression are one text."""
    texts = []
    for path in sorted((ROOT / "mats_ds").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdr]", VALUE, node.value))
    return texts


TEXTS = list_texts()


def is_in_the_code(message: str) -> bool:
    """Whether one text has the pieces of the message between its dots, in this order."""
    pieces = [re.escape(piece) for piece in message.split("...") if piece.strip()]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    return any(pattern.search(text) for text in TEXTS)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_of_the_code(message):
    assert is_in_the_code(message), f"{message!r} is no message of mats_ds: see how it reads now"


def test_messages_are_long_enough_to_be_found():
    assert len(QUOTED) > 40
    assert [text for text in QUOTED if max(map(len, text.split("..."))) < FEWEST_LETTERS] == []


def test_a_message_that_is_none_is_found():
    assert not is_in_the_code("no manifest at ...: give a folder of pictures")
    assert not is_in_the_code("is not a folder ... no manifest at")  # the order counts, within one text


def test_every_message_has_its_fix_below_it():
    parts = re.split(r"(?m)^- `.+`$", PAGE.read_text(encoding="utf-8"))[1:]
    assert [part for part in parts if not re.match(r"\n\n    \S", part)] == []
