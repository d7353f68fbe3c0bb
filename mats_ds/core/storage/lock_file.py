"""The content of a lock file: which process holds a folder, for what and since when.

A process that is refused names it. Where a filesystem has no locks, it alone keeps others out: a
holder of this machine that is not there any more is passed over; one of another host is not, as
nobody here can see whether it still runs.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mats_ds.core.processes import ProcessIdentity, has_ended, identify_process
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_bytes
from mats_ds.core.text import clean_line

WHAT_TO_DO = "stop that one first, wait for it, or choose another --out"
CONTENT_BYTES = 8192
CLAIM_SECONDS = 0.5  # how long two that come at once may take to write their names


@dataclass(frozen=True)
class Holder:
    """The holder of a folder: process, command, and (for a reader) since when."""

    command: str
    since: str
    identity: ProcessIdentity

    def describe(self) -> str:
        """For a message: the texts come from a file that anybody may have written."""
        return clean_line(f"{self.command} on host {self.identity.host}, process {self.identity.process}, since {self.since}")


def make_holder(command: str) -> Holder:
    """This process, from now on."""
    return Holder(command, time.strftime("%Y-%m-%d %H:%M:%S"), identify_process())


def dump_holder(holder: Holder) -> str:
    """The content of a lock file, which `parse_holder` reads."""
    return json.dumps({"command": holder.command, "since": holder.since, **asdict(holder.identity)}) + "\n"


def write_holder(descriptor: int, holder: Holder) -> None:
    """Write it over what the file holds."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, dump_holder(holder).encode(), 0)
    os.fsync(descriptor)


def read_holder(path: Path) -> Holder | None:
    """None where there is no such file, or not of ours. Never call it where this process has locked
    the file: closing it again would give the lock up."""
    try:
        return parse_holder(read_bytes(path, max_bytes=CONTENT_BYTES))
    except (OSError, ValueError):
        return None


def parse_holder(content: bytes) -> Holder | None:
    """None for what no program of ours wrote."""
    try:
        tree = parse_json(content)
        identity = ProcessIdentity(**{field.name: tree[field.name] for field in fields(ProcessIdentity)})
        holder = Holder(tree["command"], tree["since"], identity)
    except (ValueError, TypeError, KeyError):
        return None
    texts = (holder.command, holder.since, identity.host, identity.machine, identity.boot, identity.namespace)
    numbers = (identity.process, 0 if identity.start_ticks is None else identity.start_ticks)
    is_ours = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    return holder if is_ours else None


def describe_holder(path: Path) -> str:
    """For a message: who holds the folder, by its lock file."""
    holder = read_holder(path)
    return "another process" if holder is None else holder.describe()


def claim_by_content(path: Path, descriptor: int, holder: Holder) -> None:
    """Without locks: pass over a holder that is gone, write one's own name, and see whether it is
    still there a moment later.

    Raises ValueError where another process holds the folder, or may hold it.
    """
    before = read_holder(path)
    if before is not None and before.identity != holder.identity:
        ended = has_ended(before.identity)
        if ended is None:
            raise ValueError(
                f"{path.parent} is in use by {before.describe()}, as {path} says: if you are sure that it has ended, remove that "
                "file; else wait, or choose another --out"
            )
        if not ended:
            raise ValueError(f"{path.parent} is in use by {before.describe()}: {WHAT_TO_DO}")
    write_holder(descriptor, holder)
    time.sleep(CLAIM_SECONDS)
    if read_holder(path) != holder:
        raise ValueError(f"{path.parent} was taken at the same moment by {describe_holder(path)}: choose another --out")
