"""The identity of a process, and whether it still runs: by its number, ticks since boot and boot,
which no clock changes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MACHINE_ID = Path("/etc/machine-id")
# of the fields after the name in /proc/PID/stat: starttime, ticks since boot (proc(5))
START_FIELD = 19


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of all times and machines. `start_ticks` counts from the boot `boot`; `namespace`
    is the set of process numbers that `process` is of (containers have their own). What a system
    does not know is "" or None.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    process: int
    start_ticks: int | None


def identify_process(process: int | None = None) -> ProcessIdentity:
    """This process, or another one of this machine."""
    number = os.getpid() if process is None else process
    boot = _read(PROC / "sys/kernel/random/boot_id")
    return ProcessIdentity(socket.gethostname(), _read(MACHINE_ID), boot, _namespace(), number, read_start_ticks(number))


def read_start_ticks(process: int) -> int | None:
    """When a process of this machine began, in ticks since boot; None where there is none, or the
    system does not know."""
    text = _read(PROC / str(process) / "stat")
    fields = text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything
    return int(fields[START_FIELD]) if len(fields) > START_FIELD and fields[0] not in "ZX" else None


def has_ended(other: ProcessIdentity) -> bool | None:
    """Whether a process is gone for good; None where that cannot be seen from here (another machine
    or container)."""
    here = identify_process()
    if (other.host, other.machine) != (here.host, here.machine):
        return None
    if other.boot and other.boot != here.boot:
        return True  # this machine has been started anew since
    if other.namespace != here.namespace:
        return None
    if other.start_ticks is None:
        return not _exists(other.process)
    # its number may be another process's by now
    return read_start_ticks(other.process) != other.start_ticks


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _namespace() -> str:
    try:
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
