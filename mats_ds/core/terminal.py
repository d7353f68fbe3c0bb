"""Names of files in terminals and locales that cannot hold them; what a program prints never ends
its work.

Characters that the terminal's encoding lacks are printed as escapes, and so are those that a
terminal would obey, whoever prints them (mats_ds/core/text.py). When nobody reads any more (`|
head`), or the file that the output is sent to cannot grow, the rest of the output is dropped, and
the program goes on to its own exit status.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from typing import Any, TextIO

from mats_ds.core.text import clean_line, clean_output

# What DeepSpeed logs as a warning at every start without a GPU; errors and other warnings stay.
# "MPU": no tensor parallelism, at every resume
NOTICES = ("Setting accelerator to CPU", "MPU is not provided")


class TolerantStream:
    """A text stream without characters that a terminal obeys, which drops its output from the first
    failing write on.

    Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def write(self, text: str) -> int:
        try:
            self._stream.write(clean_output(text))
        except OSError:
            self._drop()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Send this and all later output to nowhere, what lies in the buffer included."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


def make_tolerant() -> None:
    """Make standard output and errors show any name and survive their reader; so with logs of those
    who came first."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, TolerantStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        tolerant = TolerantStream(stream)
        setattr(sys, name, tolerant)
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if getattr(handler, "stream", None) is stream:
                    with contextlib.suppress(AttributeError):  # of those that look sys.stderr up themselves
                        handler.stream = tolerant
    warnings.formatwarning = _format_warning


def drop_notices() -> None:
    """Keep the NOTICES of DeepSpeed's logger out of the output; it need not be loaded yet."""
    logging.getLogger("DeepSpeed").addFilter(_is_no_notice)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not record.getMessage().startswith(NOTICES)


def _format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {clean_line(message)}\n"


def why_not_utf8(path: str) -> str | None:
    """The reason that a name does not fit into a table in UTF-8: the locale, or the name itself;
    None where it can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it" if not (why := explain_locale(path)) else f"its name cannot be read{why}"
    return None


def explain_locale(path: str) -> str:
    """A note for a file name that does not exist: the locale may be the reason. Empty where it
    cannot be."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower() in ("utf-8", "utf8") or path.isascii():
        return ""
    setting = next((f"{name}={os.environ[name]}" for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "no LANG")
    return (
        f" (the locale, {setting}, has file names encoded as {encoding}, and {ascii(path)} may be stored in UTF-8: set "
        "LC_ALL=C.UTF-8 or PYTHONUTF8=1)"
    )
