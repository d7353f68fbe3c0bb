"""The two tables of a check, the manifest and its quarantine: where they may be written, so that no
other file is lost.

A file that is there already is replaced if the journal says that a check into this `out` wrote it
as it is. Tables of version 0.1, whose journal does not list them, are known by their columns (a
quarantine also by its rows, which must be of this list); where their text changes, the old file
keeps existing as NAME.old. Everything else is refused before anything is decoded.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mats_ds.core.storage.files import format_csv, hash_file, hash_text, write_text
from mats_ds.core.storage.output_folder import check_parent
from mats_ds.core.storage.own_files import claim_name, find_same_path, refuse_sources, set_aside
from mats_ds.data.prepare.checking.check_journal import CheckJournal, journal_path
from mats_ds.data.video.indexing import describe_read_error

BAD_COLUMNS = ("path", "label", "reason")
QUARANTINE = "quarantine.csv"
WOULD_BE_LOST = "and would be lost: rename it, or give another name"


class CheckTables:
    """written_quarantine: where the bad rows were written. kept: files of version 0.1 that
    differed, by their new names.

    written_path: the name that a path of the list has in the tables.
    """

    def __init__(
        self,
        out: Path,
        quarantine: Path | None,
        *,
        columns: Sequence[str],
        sources: Sequence[str | os.PathLike[str]],
        listed: Sequence[str],
        written_path: Callable[[str], str],
    ) -> None:
        self.out = out
        self._asked = quarantine
        self._columns = columns
        self._sources, self._listed, self._written_path = sources, listed, written_path
        self.written_quarantine: Path | None = None
        self.kept: list[Path] = []

    def make_room(self) -> None:
        """See to it, before hours of decoding, that the names can be written to and are none of the
        videos and lists.

        Raises ValueError.
        """
        journal = journal_path(self.out)
        if self._asked is not None:
            if find_same_path(self._asked, [self.out]) or self.out.resolve() == self._asked.resolve():
                raise ValueError(f"the manifest and the quarantine would both be written to {self.out}: give two names")
            if find_same_path(self._asked, [journal]):
                raise ValueError(f"--quarantine {self._asked} is where the check keeps what it knows: give another name")
        for target, option in ((self.out, "--out"), (self._asked, "--quarantine")):
            if target is not None:
                if target.is_dir():
                    raise ValueError(f"{target} is a folder: give the name of a .csv file")
                refuse_sources(target, option=option, sources=self._sources, listed=self._listed)
                _make_folder(target)
        refuse_sources(journal, option="the journal of --out,", sources=self._sources, listed=self._listed)
        # nothing here was ever written by a check: do not even begin a journal
        if not journal.exists():
            for target, option in ((self.out, "--out"), (self._asked, "--quarantine")):
                if target is not None and os.path.lexists(target):
                    raise ValueError(f"{option} {target} {_not_ours(self.out)}")

    def refuse_losses(self, journal: CheckJournal) -> None:
        """Raises ValueError where one of the tables would take the place of a file that no check
        into this `out` wrote."""
        self._refuse_loss(self.out, "--out", journal)
        self._choose_quarantine(journal)

    def write(self, journal: CheckJournal, rows: Sequence[tuple], bad: Sequence[tuple]) -> None:
        """Write both, the manifest last. Raises ValueError where something has taken a name since
        the check began."""
        self._refuse_loss(self.out, "--out", journal)
        text = format_csv([BAD_COLUMNS, *bad])
        while not self._write(self._choose_quarantine(journal), text, journal):
            continue
        text = format_csv([self._columns, *rows])
        while not self._write(self.out, text, journal):
            self._refuse_loss(self.out, "--out", journal)

    def _write(self, path: Path, text: str, journal: CheckJournal) -> bool:
        """Whether the table was written: not where another check has taken the name in the last
        moment."""
        checksum = hash_text(text)
        if path.exists() and not journal.own.holds(path) and not _is_empty(path) and hash_file(path) != checksum:
            self.kept.append(set_aside(path))
        if not path.exists():
            try:
                claim_name(path)
            except FileExistsError:
                return False
        journal.add_table(path, checksum)
        write_text(path, text, durable=True, errors="backslashreplace")
        if path != self.out:
            self.written_quarantine = path
        return True

    def _choose_quarantine(self, journal: CheckJournal) -> Path:
        """The name asked for; without one, of the two usual names that which is ours, else the
        first free one."""
        if self._asked is not None:
            self._refuse_loss(self._asked, "--quarantine", journal)
            return self._asked
        usual = [self.out.with_name(name) for name in (QUARANTINE, f"{self.out.stem}.{QUARANTINE}")]
        allowed = []
        for path in usual:
            try:
                refuse_sources(path, option="--quarantine", sources=self._sources, listed=self._listed)
                if find_same_path(path, [self.out, journal.path]) is None:
                    self._refuse_loss(path, "--quarantine", journal)
                    allowed.append(path)
            except ValueError:
                continue
        if not allowed:
            names = " and ".join(map(str, usual))
            raise ValueError(f"{names} are of something else, and would be lost: give a free name with --quarantine")
        return next((path for path in allowed if path.exists()), allowed[0])

    def _refuse_loss(self, path: Path, option: str, journal: CheckJournal) -> None:
        if not os.path.lexists(path) or journal.own.holds(path) or (journal.is_old and self._is_of_old_check(path)):
            return
        if journal.own.knows(path):
            if _is_empty(path):  # a kill has left the name without its table
                return
            raise ValueError(f"{option} {path} was changed after this command wrote it, {WOULD_BE_LOST}")
        raise ValueError(f"{option} {path} {_not_ours(self.out)}")

    def _is_of_old_check(self, path: Path) -> bool:
        try:
            with open(path, encoding="utf-8", newline="") as file:
                lines = csv.reader(file)
                header = tuple(next(lines, ()))
                if path == self.out or header != BAD_COLUMNS:
                    return header == tuple(self._columns)
                listed = {_as_written(self._written_path(name)) for name in self._listed}
                return all(line[0] in listed for line in lines if line)
        except (OSError, ValueError, csv.Error):
            return False


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _not_ours(out: Path) -> str:
    return f"exists and was not written by a check into {out}, {WOULD_BE_LOST}"


def _as_written(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _make_folder(target: Path) -> None:
    check_parent(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {target}: {describe_read_error(error)}") from None
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{target} cannot be written: give a name in a folder of yours")
