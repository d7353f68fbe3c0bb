"""What every importer takes and gives: a request, and the rows, classes and mistakes that it finds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mats_ds.core.terminal import explain_locale
from mats_ds.data.prepare.importers.source import Source
from mats_ds.data.prepare.importers.videos import VideoFiles

MALFORMED = "malformed"
UNKNOWN_LABEL = "label not in the class list"
NOT_FOUND = "file not found"
CONFLICT = "same video, different label"
FRAME_FOLDER = "frame folder"
SEVERAL_LABELS = "several labels"


@dataclass(frozen=True)
class Request:
    """number: the numbered split, subset: train, val or test, labels: a class list of the user's; None where not given."""

    source: Source
    videos: VideoFiles
    number: int | None = None
    subset: str | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Row:
    """One manifest row. label -1: unknown; start, end in seconds, nan: the whole file; where: `file:line` it came from."""

    path: str
    label: int
    start: float
    end: float
    where: str


@dataclass(frozen=True)
class Mistake:
    where: str
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.where}: {self.words}"


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

    def refuse(self, where: str, kind: str, words: str) -> None:
        self.mistakes.append(Mistake(where, kind, words))

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
    """A read annotation source. root: the folder that relative row paths start from, None if no file was looked for.

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
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
