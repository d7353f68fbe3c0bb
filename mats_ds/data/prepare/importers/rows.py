"""Request and result of every importer (rows, classes, mistakes), and the files that are written
from it.

A manifest.csv gets two companions, the class names (.classes.txt) and all mistakes (.mistakes.txt).
All are written aside and renamed, the manifest last: whoever finds a manifest finds it complete,
with its classes. What was there before is never lost.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mats_ds.core.format import format_count
from mats_ds.core.storage.files import hash_file, hash_text, refuse_wrong_kind, replace_file
from mats_ds.core.storage.output_folder import check_parent
from mats_ds.core.storage.own_files import claim_name, find_same_path, find_same_target, set_aside
from mats_ds.core.terminal import explain_locale
from mats_ds.core.text import quote_word
from mats_ds.data.manifest import COLUMNS, show_seconds
from mats_ds.data.prepare.importers.source import Source, VideoFiles

MALFORMED = "malformed"
UNKNOWN_LABEL = "label not in the class list"
NOT_FOUND = "file not found"
CONFLICT = "same video, different label"
FRAME_FOLDER = "frame folder"
SEVERAL_LABELS = "several labels"
MAX_MISTAKES_SHOWN = 50


@dataclass(frozen=True)
class Request:
    """number: the numbered split, subset: train, val or test, labels: a class list of the user's;
    None where not given."""

    source: Source
    videos: VideoFiles
    number: int | None = None
    subset: str | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Row:
    """One manifest row. label -1: unknown; start, end in seconds, nan: the whole file; where:
    `file:line` it came from."""

    path: str
    label: int
    start: float
    end: float
    where: str


@dataclass(frozen=True)
class Mistake:
    where: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass
class Rows:
    """Rows, class names by number, mistakes and remarks, gathered while a source is read."""

    rows: list[Row] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, where: str, path: str, label: int = -1, start: float = math.nan, end: float = math.nan) -> None:
        """A row, unless its label or its part of the video makes no sense."""
        if not _fits_manifest(path):
            self.refuse(where, MALFORMED, f"{ascii(path)} is not UTF-8, or begins or ends with a space: rename the file")
        elif label < -1 or label >= 2**31:
            self.refuse(where, UNKNOWN_LABEL, f"label {label} of {path}: number the classes from 0 (-1: unknown)")
        elif self.classes and label >= len(self.classes):
            last = len(self.classes) - 1
            self.refuse(where, UNKNOWN_LABEL, f"label {label} of {path}: the class list ends at {last} ({self.classes[-1]})")
        elif start < 0 or end <= (0.0 if math.isnan(start) else start):
            self.refuse(where, MALFORMED, f"{path} from {start:g} s to {end:g} s: expected 0 <= start < end")
        else:
            self.rows.append(Row(path, label, start, end, where))

    def refuse(self, where: str, kind: str, text: str) -> None:
        self.mistakes.append(Mistake(where, kind, text))

    def refuse_missing(self, where: str, request: Request, wanted: str) -> None:
        self.refuse(where, NOT_FOUND, f"no video {wanted} below {request.videos.root}{explain_locale(wanted)}")


def _fits_manifest(path: str) -> bool:
    """Whether a manifest, which is UTF-8 and strips its fields, gives the path back as it is."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path == path.strip()


@dataclass(frozen=True)
class Imported:
    """A read annotation source. root: the folder that relative row paths start from, None if no
    file was looked for.

    files: all that was read.
    """

    format: str
    rows: list[Row]
    classes: list[str]
    mistakes: list[Mistake]
    notes: list[str]
    root: Path | None
    files: tuple[Path, ...] = ()

    def count_mistakes(self) -> str:
        counts = Counter(mistake.kind for mistake in self.mistakes)
        return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def companions(out: Path) -> tuple[Path, Path]:
    """The files of class names and of mistakes that belong to a manifest."""
    return out.with_name(out.name + ".classes.txt"), out.with_name(out.name + ".mistakes.txt")


def refuse_to_overwrite(out: Path, *, force: bool, keep: Iterable[str | Path | None]) -> None:
    """Raises ValueError where a file would be lost or there is no folder to write into; those of
    `keep` even with force."""
    existing = [str(path) for path in (out, *companions(out)) if os.path.lexists(path)]
    if out.is_dir():
        raise ValueError(f"{out} is a folder: --out takes the manifest file to write, for example {out / 'manifest.csv'}")
    check_parent(out)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} into: create it first")
    for path in filter(None, keep):
        if find_same_target(path, (out, *companions(out))):
            raise ValueError(f"--out {out} would overwrite {path}, which is being imported: choose another --out")
    for path in (out, *companions(out)):
        refuse_wrong_kind(path)
    if existing and not force:
        raise ValueError(f"{' and '.join(existing)} would be overwritten: choose another --out, or add --force")


def refuse_videos(imported: Imported, out: Path) -> None:
    """Raises ValueError where a file to write is one of the imported videos."""
    for path in (out, *companions(out)):
        if video := find_same_path(path, (os.path.join(imported.root or "", row.path) for row in imported.rows)):
            raise ValueError(f"--out {out} would overwrite the video {video}, which is being imported: choose another --out")


def write_imported(imported: Imported, out: Path, *, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Write the files that there is something to write into; return them, and the names of those
    that were in their place.

    With `force`, files that are there and would change are kept as NAME.old; nothing is overwritten
    or deleted. Raises ValueError where they cannot be written, and without `force` where they have
    come into being since.
    """
    classes_file, mistakes_file = companions(out)
    texts = {
        out: format_manifest(imported.rows),
        classes_file: "".join(f"{name}\n" for name in imported.classes),
        mistakes_file: "".join(f"{mistake}\n" for mistake in imported.mistakes),
    }
    refuse_videos(imported, out)
    claimed: list[Path] = []
    try:
        # they get their names in the reverse order, the manifest last
        with contextlib.ExitStack() as stack:
            for path, text in texts.items():
                if text:
                    stack.enter_context(replace_file(path)).write_bytes(text.encode("utf-8", "backslashreplace"))
            refuse_to_overwrite(out, force=force, keep=imported.files)
            kept = [set_aside(path) for path, text in texts.items() if path.exists() and hash_file(path) != hash_text(text)]
            for path, text in texts.items():
                if text and not path.exists():
                    claim_name(path)
                    claimed.append(path)
    except FileExistsError as error:
        for path in claimed:
            path.unlink()
        raise ValueError(f"{error.filename} was written by something else just now: choose another --out") from None
    except OSError as error:
        raise ValueError(f"cannot write {error.filename or out}: {error.strerror}") from None
    return [path for path, text in texts.items() if text], kept


def describe_imported(imported: Imported) -> list[str]:
    """Lines about the format, the rows and the mistakes."""
    rows, mistakes = imported.rows, imported.mistakes
    num_labelled = sum(row.label >= 0 for row in rows)
    used = len({row.label for row in rows if row.label >= 0})
    named = (
        f"{used:,} of {format_count(len(imported.classes), 'named class')}"
        if imported.classes
        else f"{format_count(used, 'class')} (names unknown)"
    )
    lines = [*imported.notes, f"rows: {len(rows):,}, {num_labelled:,} of them labelled with {named}"]
    num_missing = sum(mistake.kind == NOT_FOUND for mistake in mistakes)
    if imported.root is None:
        lines.append("files: not looked for; no --root was given and none of them lies beside the list")
    else:
        num_found = len({row.path for row in rows})
        lines.append(f"files: {num_found:,} found below {imported.root}, {format_count(num_missing, 'row')} without their file")
        if num_missing and not num_found:
            lines.append(f"  is {imported.root} the folder that holds these videos? --root names another")
    if mistakes:
        lines.append(f"{format_count(len(mistakes), 'mistake')}: {imported.count_mistakes()}")
        kinds = Counter(mistake.kind for mistake in mistakes)
        # else 5000 lost videos hide the one bad label
        rare_first = sorted(mistakes, key=lambda mistake: kinds[mistake.kind])
        lines += [f"  - {mistake}" for mistake in rare_first[:MAX_MISTAKES_SHOWN]]
        if len(mistakes) > MAX_MISTAKES_SHOWN:
            lines.append(f"  and {len(mistakes) - MAX_MISTAKES_SHOWN:,} more")
    return lines


def train_arguments(imported: Imported, out: Path) -> str:
    """Recipe options by which the trainer finds the manifest and its videos."""
    arguments = [f"data.manifest={out}"]
    if imported.root is None:
        return f"{quote_word(arguments[0])} data.root=VIDEO_DIR"
    if imported.root.resolve() != out.absolute().parent.resolve():
        arguments.append(f"data.root={imported.root}")
    return " ".join(map(quote_word, arguments))


def format_manifest(rows: list[Row]) -> str:
    """CSV text with a header; a column that would be empty in all rows is left out."""
    table = [(row.path, str(row.label) if row.label >= 0 else "", show_seconds(row.start), show_seconds(row.end)) for row in rows]
    kept = [0, *(column for column in range(1, len(COLUMNS)) if any(fields[column] for fields in table))]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([COLUMNS[column] for column in kept])
    writer.writerows([fields[column] for column in kept] for fields in table)
    return text.getvalue()
