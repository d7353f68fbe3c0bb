"""Hostfiles, and the hosts of one that a run takes. The rules are stricter than DeepSpeed's, whose
reader comes after this.

Names go to a shell, to ssh and to pdsh on their way, so nothing but a host name passes.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from mats_ds.core.storage.files import read_text
from mats_ds.core.text import Lines

MAX_HOSTFILE_BYTES = 4 << 20
MAX_MISTAKES = 20
# RFC 1123, section 2.1: labels of letters, digits and "-", 63 characters each (RFC 1034), 253 in
# all; "_" is common.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LINE = re.compile(r"\s*(\S+)\s+slots=([1-9][0-9]{0,3})\s*(?:#.*)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def is_host(text: str) -> bool:
    """Whether it is a host name or an IPv4 address, and nothing else."""
    return len(text) <= 253 and _HOST.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether it is a host name or an IP address."""
    return is_host(text) or (":" in text and re.fullmatch(r"[0-9A-Fa-f:.]+", text) is not None)


def is_port(text: str) -> bool:
    """Whether it is a number from 1 to 65535."""
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None and int(text) < 65536


def free_port() -> int:
    """A port of this machine that nobody listens at now; the kernel chooses it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_hostfile(path: str | Path) -> list[str]:
    """The host names in the file, in its order. Raises ValueError with all mistakes, by their
    lines."""
    if not Path(path).is_file():
        raise ValueError(f"there is no hostfile {path}: it has a line for each machine, such as:  node1 slots=8")
    text = read_text(Path(path), max_bytes=MAX_HOSTFILE_BYTES, follows_links=True)
    # DeepSpeed would see other lines where a control character stands
    mistakes = ["it holds control characters: no text file"] if _CONTROL.search(text) else []
    names: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if "\r" in line:
            mistakes.append(f"line {number}: a carriage return in the middle of it")
        if re.match(r"\s*(#|$)", line, re.ASCII):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            mistakes.append(f"line {number}: expected NAME slots=GPUS, got {line!r}")
            continue
        name = match[1]
        if not is_host(name):
            mistakes.append(
                f"line {number}: {name!r} is no host name (letters, digits, '-', '_' and '.'); for a user or an IPv6 address, "
                "write  Host NAME  with User or HostName into ~/.ssh/config and that NAME here"
            )
        if name in names:
            mistakes.append(f"line {number}: {name} is there twice")
        names.append(name)
    if not names and not mistakes:
        mistakes = ["it names no machine; a line of it looks like:  node1 slots=8"]
    if mistakes:
        raise ValueError(Lines(f"{path}: {mistakes[0]}", *(f"  {mistake}" for mistake in mistakes[1 : MAX_MISTAKES + 1])))
    return names


def choose_hosts(names: Sequence[str], *, num_nodes: str = "", include: str = "", exclude: str = "") -> list[str]:
    """The hosts that take part, in the file's order.

    num_nodes: how many of the first, "" for all. include, exclude: HOST[:SLOT,...], joined by @, as
    DeepSpeed has them.
    Raises ValueError for a part that is none, a host that is not in the file, or where nothing is
    left.
    """
    parts = {"include": _split_parts(include, names), "exclude": _split_parts(exclude, names)}
    included = {part.partition(":")[0] for part in parts["include"]}
    chosen = [name for name in names if (not included or name in included) and name not in parts["exclude"]]
    if not chosen:
        raise ValueError("--include and --exclude leave no machine")
    if num_nodes:
        if not re.fullmatch(r"[1-9][0-9]{0,6}", num_nodes):
            raise ValueError(f"--num_nodes takes a number from 1 on, got {num_nodes!r}")
        if int(num_nodes) > len(chosen):
            raise ValueError(f"--num_nodes {num_nodes}: the hostfile names only {len(chosen)}")
        chosen = chosen[: int(num_nodes)]
    return chosen


def _split_parts(text: str, names: Sequence[str]) -> list[str]:
    if not re.fullmatch(r"[A-Za-z0-9_.:,@-]*", text):
        raise ValueError(f"--include and --exclude take HOST[:SLOT,...], joined by @, got {text!r}")
    parts = [part for part in text.split("@") if part]
    for part in parts:
        if ":" in part and not re.fullmatch(r"[^:]+:[0-9]+(,[0-9]+)*", part):
            raise ValueError(f"{part!r}: expected HOST or HOST:SLOT,SLOT,... with numbers")
        if (host := part.partition(":")[0]) not in names:
            raise ValueError(f"{host} is not in the hostfile, which names {' '.join(names)}")
    return parts
