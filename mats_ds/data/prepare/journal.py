"""A journal of finished work: lines of JSON in a file, added by one process at a time, from which a
later run resumes.

Lines are only added. A run that is killed may leave a torn last line; the next run ends it, and
readers pass it over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import refuse_wrong_kind, write_text
from mats_ds.core.storage.lock_file import describe_holder, dump_holder, make_holder, read_holder
from mats_ds.data.prepare.worker_pool import WorkersFailed

try:
    import fcntl
except ImportError:  # no POSIX system: nobody is refused
    fcntl = None

SYNC_SECONDS = 30.0


class Journal:
    """A journal that is open for adding. lines: what it held before."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self._file = file
        self._synced_seconds = time.monotonic()
        file.seek(0)
        self.lines = file.read().split("\n")
        # of a torn last line, to be written before the first of ours
        self._line_end = "\n" if self.lines[-1] else ""

    def add(self, line: str) -> None:
        """Add a line, which a kill of this process cannot lose any more; a power cut may take the
        last SYNC_SECONDS."""
        self._file.write(f"{self._line_end}{line}\n")
        self._file.flush()
        self._line_end = ""
        if time.monotonic() - self._synced_seconds > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force all lines to the disk."""
        os.fsync(self._file.fileno())
        self._synced_seconds = time.monotonic()


@contextlib.contextmanager
def open_journal(path: Path, *, command: str, holder: Path | None = None) -> Iterator[Journal]:
    """The journal, which is made where there is none, locked against other processes.

    holder: file that names this process for those who are refused, while the journal is open;
    another program's is left alone.
    Raises ValueError while another process has the journal, and where it is no regular file.
    """
    refuse_wrong_kind(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8", errors="replace") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = f" ({describe_holder(holder)})" if holder else ""
                raise ValueError(f"another {command} is writing {path}: wait for it, or give another --out{who}") from None
            except OSError:  # a file system without locks
                pass
        is_named = holder is not None and _name_holder(holder, command)
        try:
            yield Journal(path, file)
        finally:
            if is_named:
                holder.unlink(missing_ok=True)


def read_entries(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of those lines that hold one; others, torn or of somebody else, are passed
    over."""
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = parse_json(line)
            if isinstance(entry, dict):
                yield entry


@contextlib.contextmanager
def resumable(done: str, *, journal: str | os.PathLike[str]) -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, and whose early end reports that the same command
    goes on.

    done: "checked", "copied". Raises ValueError where workers do not start and where the system
    refuses something (no room, no permission); KeyboardInterrupt with the line for the user.
    """
    is_main = threading.current_thread() is threading.main_thread()
    on_terminate = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        yield
    except WorkersFailed as error:
        raise ValueError(f"{error}; what was {done} so far is kept") from None
    except OSError as error:
        reason = describe_system_error(error)
        raise ValueError(f"{reason}; what was {done} so far is kept, and the same command goes on") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command goes on from here ({journal})") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, on_terminate)


def describe_system_error(error: OSError) -> str:
    """The file, where there is one, and the error of the system."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def _name_holder(holder: Path, command: str) -> bool:
    """Whether this process could name itself; the lock does not depend on it."""
    try:
        if holder.exists() and read_holder(holder) is None:  # not left by a run that was killed
            return False
        write_text(holder, dump_holder(make_holder(command)))
    except (OSError, ValueError):
        return False
    return True
