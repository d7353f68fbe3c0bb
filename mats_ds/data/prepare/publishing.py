"""Give a finished file its name: flushed to the disk, noted in a record first, and never replacing
somebody else's file.

Unfinished files lie beside their targets under names that begin with a dot and a prefix of their
own, `.PREFIX.0.part`, so that whoever cleans up after a kill can distinguish them from all others.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from mats_ds.core.storage.files import hash_file, open_to_append, sync_to_disk
from mats_ds.core.storage.own_files import OwnFiles, claim_name

PART = ".part"


@dataclass(frozen=True)
class Publisher:
    """Names of the unfinished files of one task, and the existing files that they may replace.

    record: file that each finished file is noted in (own_files.py), None: nowhere. replaceable:
    absolute paths of files that may be replaced, None: whatever has the target's name.
    """

    prefix: str = field(default_factory=lambda: secrets.token_hex(8))
    record: str | None = None
    replaceable: frozenset[str] | None = None

    def open_part(self, folder: Path, what: str | int = 0) -> Path:
        """An empty file in `folder` to write into; one of this name that a kill has left is taken
        away first."""
        part = folder / f".{self.prefix}.{what}{PART}"
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        claim_name(part)
        return part

    def remove_parts(self, folder: Path) -> None:
        """Remove what the task left unfinished in a folder."""
        remove_parts(folder, f".{self.prefix}.")

    def check_target(self, target: Path) -> None:
        """Raises FileExistsError where the target would take the place of a file that may not be
        replaced."""
        if self.replaceable is not None and os.path.lexists(target) and os.path.abspath(target) not in self.replaceable:
            raise FileExistsError(f"{target} exists and was not written by this command: move it away")

    def note(self, part: Path, target: Path) -> None:
        """Add a line to the record, before the file gets its name."""
        self.check_target(target)
        if self.record is None:
            return
        own = OwnFiles(os.path.dirname(self.record))
        with open_to_append(Path(self.record)) as record:
            # a torn line before it does no harm
            record.write("\n" + own.note(target, hash_file(part)))
            record.flush()
            os.fsync(record.fileno())


def remove_parts(folder: Path, beginning: str) -> None:
    """Remove unfinished files whose names begin like this."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(beginning) and path.name.endswith(PART):
                path.unlink(missing_ok=True)


def publish(part: Path, target: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk."""
    sync_to_disk(part)
    os.replace(part, target)
    sync_to_disk(target.parent)
