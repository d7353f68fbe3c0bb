r"""Texts of others made safe to show: names of files, classes and hosts, error texts of libraries.

A name may hold nearly any character, also those that a terminal obeys (colours, cursor, title,
clipboard) and new lines that make one message look like two. Shown to a person they become escapes,
`\n` or `\x1b`, and a text without end is cut in its middle. Every other character stays, in any
script. What is written into files for programs (CSV, JSON) keeps names exactly as they are.

    say(f"wrote {path}")                                     one argument, one line, on stdout
    raise ValueError(Lines("3 mistakes in x.csv", *mistakes))   a message of several lines, shown as
                                                                such
"""

from __future__ import annotations

import difflib
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Iterable
from typing import TextIO

MAX_CHARACTERS = 4000  # of a line: a path has 4096 bytes at most on Linux
MAX_LINES = 64  # of one message, and MAX_MESSAGE characters in all
MAX_MESSAGE = 16_000
COMPARED_CHARACTERS = 100  # of a wrong name: longer ones take memory and time to compare
# Control characters (C0, DEL, C1), line and paragraph separators, surrogates, which stand for bytes
# that are no UTF-8, and of Unicode's format characters (category Cf) those that turn the direction
# of a text (annex 9, as in CVE-2021-42574) or are never seen: two names that look the same would be
# two. The joiners U+200C and U+200D stay, which Persian, Hindi and emoji need.
_FORMAT = (
    r"\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(rf"[\x00-\x1f\x7f-\x9f{_FORMAT}\ud800-\udfff]")
_UNSAFE_IN_OUTPUT = re.compile(rf"(?!^\r|\r\n)[\x00-\x09\x0b-\x1f\x7f-\x9f{_FORMAT}\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CURSOR_UP = re.compile(r"\n*(\x1b\[A)+")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def clean_line(text: object, *, max_characters: int = MAX_CHARACTERS) -> str:
    """The text as one line of `max_characters` or a few more: unsafe characters as escapes, the
    middle of a long one left out."""
    text = str(text)
    if len(text) <= max_characters:
        clean = _UNSAFE.sub(_escape, text)
        if len(clean) <= max_characters:
            return clean
    half = max_characters // 2
    head, tail = _UNSAFE.sub(_escape, text[:half])[:half], _UNSAFE.sub(_escape, text[-half:])[-half:]
    return f"{head} ... ({len(text):,} characters) ... {tail}"


def clean_page(text: str) -> str:
    """A text of any length and number of lines with visible escapes, fit for HTML, XML and a
    terminal."""
    return "\n".join(_UNSAFE.sub(_escape, line) for line in text.split("\n"))


def clean_output(text: str) -> str:
    r"""Output of other people's code, made safe for a terminal: escapes for all but new lines and
    what a progress bar moves its line with.

    Colours are left out. This is the net below `clean_line`: for it the new lines of a name are
    like all others.
    """
    if text.isascii() and text.isprintable():  # the common case, and quick
        return text
    return text if _CURSOR_UP.fullmatch(text) else _UNSAFE_IN_OUTPUT.sub(_escape, _COLOUR.sub("", text))


class Lines(str):
    """A message of several lines on purpose. New lines inside of a part become escapes, and parts
    beyond the limits are counted.

    `str(error)` of an exception that was made with one is the same Lines again, so that it survives
    being handed on.
    """

    def __new__(cls, *parts: object) -> Lines:
        kept: list[str] = []
        for part in parts:
            line = clean_line(part, max_characters=MAX_CHARACTERS // 4)
            is_full = len(kept) >= MAX_LINES or sum(map(len, kept)) + len(line) > MAX_MESSAGE
            if is_full and len(kept) < len(parts) - 1:
                # often what to do about it
                last = clean_line(parts[-1], max_characters=MAX_CHARACTERS // 4)
                kept += [f"  ({len(parts) - len(kept) - 1} more lines)", last]
                break
            kept.append(line)
        return super().__new__(cls, "\n".join(kept))

    def __str__(self) -> str:
        return self

    # for pickle: the parts, as one text would lose its lines
    def __getnewargs__(self) -> tuple[str, ...]:
        return tuple(self.split("\n"))


def describe_error(error: BaseException) -> str:
    """The message of an error for a person: one line, or the lines that it was made of."""
    text = str(error)
    return text if isinstance(text, Lines) else clean_line(text or type(error).__name__)


def describe_crash(error: BaseException) -> str:
    """The traceback of an error that nobody expected: clean lines, not too many; of a message all
    but the first are indented."""
    lines: list[str] = []
    for entry in traceback.format_exception(type(error), error, error.__traceback__):
        first, *rest = entry.rstrip("\n").expandtabs(4).split("\n")
        # others are frames, and the text between two errors
        is_message = not entry.startswith((" ", "\n"))
        lines += [first, *(f"    {line}" if is_message else line for line in rest)]
    if len(lines) > 2 * MAX_LINES:
        lines = [*lines[:MAX_LINES], f"  ... ({len(lines):,} lines) ...", *lines[-MAX_LINES:]]
    return "\n".join(map(clean_line, lines))


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print each argument as one line, on stdout or `stream`, at once: what comes next may end the
    process."""
    for line in lines:
        print(line if isinstance(line, Lines) else clean_line(line), file=stream or sys.stdout)
    (stream or sys.stdout).flush()


def tell_error(error: BaseException | str) -> None:
    """Print on stderr, as one line, why a program ends."""
    text = describe_error(error) if isinstance(error, BaseException) else error if isinstance(error, Lines) else clean_line(error)
    print(f"error: {text}", file=sys.stderr, flush=True)


def quote_word(text: object) -> str:
    """The text as one word of a command that a person may paste into a shell."""
    text = str(text)
    if not _UNSAFE.search(text):
        return shlex.quote(text)
    # of bash and zsh: $'...' knows escapes. Backslashes and quotes first, then the bytes of what
    # cannot be shown.
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_UNSAFE.sub(_escape_bytes, plain)}'"


def find_nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that a wrong one was meant to be, whatever its capitals, hyphens and
    underscores; None where none is near."""
    plain = {_plain_name(other): other for other in known}
    close = difflib.get_close_matches(_plain_name(name[:COMPARED_CHARACTERS]), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """ "; did you mean NAME?" with the nearest known name; empty where none is near."""
    nearest = find_nearest(name, known, cutoff=cutoff)
    return f"; did you mean {nearest}?" if nearest else ""


def _plain_name(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


class LineFormatter(logging.Formatter):
    """One line a record, whatever its arguments hold; a traceback follows line by line."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.msg if isinstance(record.msg, Lines) and not record.args else clean_line(record.getMessage())
        crash = describe_crash(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        return f"{message}\n{crash}" if crash else message


def log_to_stderr(level: int) -> None:
    """Log records of this level and above on stderr, unless somebody has set logging up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def _escape_bytes(match: re.Match[str]) -> str:
    errors = "surrogateescape" if "\udc80" <= match[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", errors))


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # as Python keeps a byte of a name that is no UTF-8
        code -= 0xDC00
    width = 2 if code < 0x100 else 4 if code < 0x10000 else 8
    return _SHORT.get(character) or f"\\{'xuU'[width // 4]}{code:0{width}x}"
