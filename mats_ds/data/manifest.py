"""Annotation files and folders -> Manifest: which videos there are, their labels and the part of
each that may be used.

Three kinds of source:
- CSV with a header that names `path` and, in any order, optionally `label`, `start`, `end`
  (seconds); other columns are ignored;
- a list without a header, one `path label` a line, space or comma separated, as VideoMAE's
  annotation files are: the label is the last field, so that a path may hold spaces and commas; a
  line that ends in a video extension has no label;
- a folder: all video files below it, sorted. The label is the number of the class folder (sorted by
  name; two spellings of one name are one class) if every video lies exactly one level down and
  there are at least two classes, else -1.
No video is opened here. A file that is missing becomes a bad clip when its turn comes.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mats_ds.core.format import format_count
from mats_ds.core.shards.members import file_exists, list_members
from mats_ds.core.shards.table import index_path
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.terminal import explain_locale
from mats_ds.core.text import Lines, find_nearest
from mats_ds.data.class_names import merge_names, normalise_name
from mats_ds.data.list_text import VIDEO_EXTENSIONS, column_names, decode_text, find_delimiter, has_video_extension, split_line

logger = logging.getLogger(__name__)

COLUMNS = ("path", "label", "start", "end")
MAX_MISTAKES_SHOWN = 20
SOURCES = "a .csv with a column `path`, a list of `path label` lines, or a folder of videos"


@dataclass(frozen=True)
class Manifest:
    """The videos of one data set; S of them, in the order of their source.

    label_S: int64, -1 where unknown. first_seconds_S, last_seconds_S: float64, nan where the whole
    file may be used.
    """

    paths: list[str]
    label_S: np.ndarray
    first_seconds_S: np.ndarray
    last_seconds_S: np.ndarray
    name: str = ""

    def __len__(self) -> int:
        return len(self.paths)


def show_seconds(seconds: float) -> str:
    """A time as a manifest has it: to the microsecond, without trailing zeros; nothing for nan."""
    return "" if math.isnan(seconds) else f"{seconds:.6f}".rstrip("0").rstrip(".")


class _Rows:
    """Rows and mistakes gathered while a source is read."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.firsts: list[float] = []
        self.lasts: list[float] = []
        self.mistakes: list[str] = []

    def add(self, path: str, label: int, first: float = math.nan, last: float = math.nan) -> None:
        self.paths.append(os.path.join(self.base, path))
        self.labels.append(label)
        self.firsts.append(first)
        self.lasts.append(last)


def read_manifest(
    source: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, root_name: str = "--root"
) -> Manifest:
    """The videos that `source` lists. Relative paths start at `root` if given, else at the folder
    of `source`.

    root_name: the option or the key of a recipe that gives `root`, for errors.
    Raises ValueError with every mistake and its line number, and when not one of the listed files
    exists.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"no manifest at {path}: give {SOURCES}")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"{root_name} {root} is no folder: give the folder that the manifest's relative paths start from")
    if path.is_dir():
        rows = _read_folder(path)
        if not rows.paths:
            fix = f"expected files ending in {' '.join(sorted(VIDEO_EXTENSIONS))}"
            if next(path.glob("*.tar"), None) is not None:
                fix = f"of the tar shards there, give the manifest that lists their files: {path / 'manifest.csv'}"
            raise ValueError(f"no video below {path}: {fix}")
    else:
        rows = _read_file(path, Path(root) if root is not None else path.parent)
    manifest = Manifest(
        rows.paths,
        np.asarray(rows.labels, np.int64),
        np.asarray(rows.firsts, np.float64),
        np.asarray(rows.lasts, np.float64),
        name=path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}/{path.name}",
    )
    if not any(map(file_exists, manifest.paths)):
        why = next(filter(None, map(explain_locale, manifest.paths)), "")
        raise ValueError(
            f"{path}: of {format_count(len(manifest), 'file')} none exists; the first would be {manifest.paths[0]}{why}. "
            f"Give the folder that the paths start from: {root_name}{' ' if root_name.startswith('--') else '='}FOLDER"
        )
    if unnamed := [why for path in manifest.paths if (why := explain_locale(path)) and not file_exists(path)]:
        raise ValueError(f"{path}: not found: {format_count(len(unnamed), 'file')}{unnamed[0]}")
    return manifest


def list_videos(root: Path) -> list[str]:
    """Relative paths (with /) of all video files below `root`, sorted; links are followed once,
    hidden names are skipped."""
    seen, videos = set(), []
    for here, folders, files in os.walk(root, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS:
                videos.append(name if below == "." else f"{below}/{name}".replace(os.sep, "/"))
    return sorted(videos)


def list_packed(root: Path) -> list[tuple[str, str]]:
    """(path `shard.tar#file` below `root`, file) of the videos in shards of `prepare pack` there,
    which have an index beside them; sorted by shard."""
    paths = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for shard in sorted(name for name in files if name.endswith(".tar") and index_path(name) in files):
            below = os.path.relpath(os.path.join(here, shard), root).replace(os.sep, "/")
            members = list_members(os.path.join(here, shard))
            paths += [(f"{below}#{member.name}", member.name) for member in members if has_video_extension(member.name)]
    return paths


def _read_folder(folder: Path) -> _Rows:
    rows = _Rows(folder)
    videos = sorted((Path(path) for path in list_videos(folder)), key=lambda path: path.parts)
    classes = merge_names(path.parts[0] for path in videos)
    numbers = {normalise_name(name): number for number, name in enumerate(classes.names)}
    labelled = len(numbers) > 1 and all(len(path.parts) == 2 for path in videos)
    for path in videos:
        rows.add(str(path), numbers[normalise_name(path.parts[0])] if labelled else -1)
    for sentence in classes.describe() if labelled else []:
        logger.warning("%s: %s", folder, sentence)
    return rows


def _read_file(path: Path, base: Path) -> _Rows:
    if path.suffix.lower() == ".tar":
        listed = f"a manifest that lists its files as `{path.name}#file`"
        raise ValueError(f"{path} is a tar archive: give {listed}, as `{own_command('prepare', 'pack')}` writes it")
    try:
        text = decode_text(path.read_bytes())
    except (UnicodeDecodeError, ValueError) as error:
        kind = describe_file(path)
        if kind in (None, "a text file", "a table (CSV)") and isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
        what = f"{path} {error}" if kind is None else not_a("list of videos", path)
        raise ValueError(f"{what}: give {SOURCES}") from None
    rows = _Rows(base)
    first = text.lstrip().partition("\n")[0]
    if "path" in column_names(first):
        try:
            _read_table(text, rows)
        except csv.Error as error:
            rows.mistakes.append(f"not a CSV from some line on: {error}")
    else:
        _read_list(text, rows)
    if not rows.paths and not rows.mistakes:
        rows.mistakes.append("it lists no video")
    if rows.mistakes and (kind := describe_file(path)) in ("a JSON file", "a recipe (YAML)"):
        ways = f"; {own_command('prepare', 'import')} reads annotations in JSON" if kind == "a JSON file" else ""
        raise ValueError(f"{not_a('list of videos', path)}: give {SOURCES}{ways}")
    if rows.mistakes:
        shown = [f"  - {mistake}" for mistake in rows.mistakes[:MAX_MISTAKES_SHOWN]]
        hidden = len(rows.mistakes) - MAX_MISTAKES_SHOWN
        more = [f"  and {hidden} more"] if hidden > 0 else []
        raise ValueError(Lines(f"{path}: {format_count(len(rows.mistakes), 'mistake')}", *shown, *more))
    return rows


def _read_table(text: str, rows: _Rows) -> None:
    """A CSV with a header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=find_delimiter(text.lstrip().partition("\n")[0]))
    header: list[str] = []
    while not any(header):
        header = [name.strip().lower() for name in next(reader)]
    for name in header:
        close = find_nearest(name, COLUMNS, cutoff=0.7)
        if name not in COLUMNS and close and close not in header:
            rows.mistakes.append(f"line {reader.line_num}: column {name!r} is unknown; did you mean {close!r}?")
    for name in COLUMNS:
        if header.count(name) > 1:
            rows.mistakes.append(
                f"line {reader.line_num}: {format_count(header.count(name), 'column')} called {name!r}: keep one"
            )
    columns = {name: header.index(name) for name in COLUMNS if name in header}
    if "path" not in columns:
        rows.mistakes.append(f"line {reader.line_num}: no column is called 'path', got {','.join(header)[:120]!r}")
        return
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        where = f"line {reader.line_num}"
        if len(fields) < len(header):
            rows.mistakes.append(
                f"{where}: {format_count(len(fields), 'field')}, the header has {len(header)}: {','.join(fields)!r}"
            )
            continue
        values = {name: fields[index].strip() for name, index in columns.items()}
        if fields[columns["path"]] != values["path"] and file_exists(os.path.join(rows.base, fields[columns["path"]])):
            values["path"] = fields[columns["path"]]  # blanks that belong to the name
        if not values["path"]:
            rows.mistakes.append(f"{where}: the path is empty")
            continue
        first = _seconds(values.get("start", ""), "start", where, rows.mistakes)
        last = _seconds(values.get("end", ""), "end", where, rows.mistakes)
        if last <= (0.0 if math.isnan(first) else first):
            rows.mistakes.append(f"{where}: end {last:g} s is not after start {values.get('start') or 0} s")
        rows.add(values["path"], _label(values.get("label", ""), where, rows.mistakes), first, last)


def _read_list(text: str, rows: _Rows) -> None:
    """One `path label` a line; the label is the last field."""
    for number, text_line in enumerate(text.split("\n"), start=1):
        if not text_line.strip():
            continue
        where, line = f"line {number}", split_line(text_line)
        if line.path and not line.problem and (len(line.numbers) == 1 or (line.is_video and not line.numbers)):
            rows.add(line.path, _label("".join(map(str, line.numbers)), where, rows.mistakes))
        elif line.problem:
            rows.mistakes.append(f"{where}: expected `path label`, but {line.problem}; name the columns: path,label,start,end")
        elif len(line.numbers) > 1:
            rows.mistakes.append(
                f"{where}: {format_count(len(line.numbers), 'number')} behind {line.path[:120]!r}, and "
                f"which is the label is not known: "
                f"{own_command('prepare', 'import')} reads the lists of VideoMAEv2 and mmaction2, or name the columns: "
                "path,label,start,end"
            )
        else:
            rows.mistakes.append(
                f"{where}: expected `path label` with a whole number as label, got {text_line.strip()[:120]!r} "
                "(a table needs a first line that names its columns: path,label,start,end)"
            )


def _label(text: str, where: str, mistakes: list[str]) -> int:
    if not text:
        return -1
    try:
        label = int(text)
    except ValueError:
        mistakes.append(f"{where}: label {text!r} is not a whole number: number the classes from 0")
        return -1
    if not -1 <= label < 2**31:
        mistakes.append(f"{where}: label {label} is not between 0 and 2147483647 (or -1 for unknown)")
        return -1
    return label


def _seconds(text: str, name: str, where: str, mistakes: list[str]) -> float:
    if not text:
        return math.nan
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        mistakes.append(f"{where}: {name} {text!r} is not a number of seconds from 0 on")
        return math.nan
    return seconds
