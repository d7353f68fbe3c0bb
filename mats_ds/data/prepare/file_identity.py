"""Identity of a file, to tell later whether it has changed: its size and times, in doubt its
content.

Times are only compared for being equal, so a clock that jumps does no harm. The time of
modification can be set, and `cp -p`, `rsync -t` and `tar` do set it; the time of change cannot.
Where only that one differs (a `chmod` is enough), samples of the content decide.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

from mats_ds.core.shards.members import open_file, stat_file

SAMPLED_BYTES = 1 << 12
NUM_SAMPLES = 16


@dataclass(frozen=True)
class FileIdentity:
    """changed_ns, sample: None where they were not noted (by an older program, or of what is no
    regular file)."""

    num_bytes: int
    modified_ns: int
    changed_ns: int | None = None
    sample: str | None = None


def identify(path: str | os.PathLike[str]) -> FileIdentity:
    """Without a sample. Raises OSError and ValueError where there is no such file."""
    status = stat_file(path)
    return FileIdentity(status.num_bytes, status.modified_ns, status.changed_ns)


def with_sample(path: str | os.PathLike[str], identity: FileIdentity) -> FileIdentity:
    """The identity that the file had, with samples of its content, to be noted once the file has
    been read."""
    try:
        sample = sample_content(path, identity.num_bytes)
    except (OSError, ValueError):
        sample = None
    return replace(identity, sample=sample)


def is_same_file(path: str | os.PathLike[str], now: FileIdentity, then: FileIdentity) -> bool:
    """Whether `now`, the identity of `path`, is that of the file noted as `then`."""
    if (now.num_bytes, now.modified_ns) != (then.num_bytes, then.modified_ns):
        return False
    if then.changed_ns is None or then.sample is None or now.changed_ns == then.changed_ns:
        return True
    try:
        return sample_content(path, now.num_bytes) == then.sample
    except (OSError, ValueError):
        return False


def sample_content(path: str | os.PathLike[str], num_bytes: int) -> str:
    """SHA-256 of NUM_SAMPLES parts spread evenly over a file, of all of it where it is short; in
    hexadecimal digits.

    Raises OSError where it cannot be read, and ValueError where it is no regular file.
    """
    if not stat_file(path).is_regular:  # a pipe would be waited for
        raise ValueError(f"{path} is no regular file")
    digest = hashlib.sha256()
    last = max(0, num_bytes - SAMPLED_BYTES)
    with open_file(path) as file:
        for offset in sorted({last * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)}):
            digest.update(file.pread(SAMPLED_BYTES, offset))
    return digest.hexdigest()
