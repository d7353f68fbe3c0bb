"""Annotations as data sets ship them -> rows of a manifest (path, label, start, end), class names
and all mistakes at once.

    imported = import_annotations("trainlist01.txt", root="/data/ucf101")

One module a family of formats; each offers `fits_<name>(source) -> why, or None` and
`read_<name>(request) -> Rows`. No video is opened. Importing this needs neither torch nor a GPU.
"""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mats_ds.core.format import format_count
from mats_ds.core.text import quote_word
from mats_ds.data.class_names import merge_names, normalise_name
from mats_ds.data.list_text import column_names, split_line
from mats_ds.data.prepare.importers.class_folders import fits_class_folders, read_class_folders
from mats_ds.data.prepare.importers.ego4d import fits_ego4d, read_ego4d
from mats_ds.data.prepare.importers.kinetics import fits_kinetics, read_kinetics
from mats_ds.data.prepare.importers.lists import (
    PART_ADVICE,
    fits_mmaction2,
    fits_videomae,
    fits_videomaev2,
    judge_columns,
    read_mmaction2,
    read_videomae,
    read_videomaev2,
)
from mats_ds.data.prepare.importers.rows import CONFLICT, Imported, Mistake, Request, Row, Rows
from mats_ds.data.prepare.importers.source import Source, VideoFiles, note_files_read, open_source
from mats_ds.data.prepare.importers.split_lists import fits_hmdb51, fits_ucf101, read_hmdb51, read_ucf101
from mats_ds.data.prepare.importers.ssv2 import fits_ssv2, read_ssv2

__all__ = ["FORMATS", "Imported", "Mistake", "Row", "Source", "import_annotations", "open_source", "recognise"]

SUBSETS = ("train", "val", "test")
# where two of them fit a list, both read it alike
SAME_COLUMNS = ("videomae", "videomaev2", "mmaction2")
# by the names of the files, or of the columns: what else fits such a source reads less of it
NAMED = {
    "ucf101": (*SAME_COLUMNS, "class-folders"),
    "hmdb51": (*SAME_COLUMNS, "class-folders"),
    "kinetics": (*SAME_COLUMNS, "ssv2"),
}
PROBED_ROWS = 100


class Format(NamedTuple):
    """takes: which of `number` (the numbered split) and `subset` mean something to it.
    takes_folders: as the source."""

    fits: Callable[[Source], str | None]
    read: Callable[[Request], Rows]
    takes: tuple[str, ...] = ()
    takes_folders: bool = False


FORMATS = {
    "ucf101": Format(fits_ucf101, read_ucf101, ("number", "subset"), True),
    "hmdb51": Format(fits_hmdb51, read_hmdb51, ("number", "subset"), True),
    "kinetics": Format(fits_kinetics, read_kinetics, ("subset",)),
    "ssv2": Format(fits_ssv2, read_ssv2),
    "ego4d": Format(fits_ego4d, read_ego4d),
    "videomae": Format(fits_videomae, read_videomae),
    "videomaev2": Format(fits_videomaev2, read_videomaev2),
    "mmaction2": Format(fits_mmaction2, read_mmaction2),
    "class-folders": Format(fits_class_folders, read_class_folders, ("subset",), True),
}


@dataclass(frozen=True)
class Recognised:
    """The format taken, why, and the others that fit as well."""

    format: str
    why: str
    others: tuple[str, ...]


def recognise(source: str | os.PathLike[str] | Source) -> str:
    """The name of the format of `source`. Raises ValueError where none fits."""
    return weigh_formats(source if isinstance(source, Source) else open_source(source)).format


def weigh_formats(source: Source) -> Recognised:
    """The format that fits, and others that read the source alike or less of it.

    Raises ValueError where none fits, and says what the source is instead, or where two fit that
    read it differently.
    """
    if source.lines and "path" in column_names(source.lines[0][1]):
        raise ValueError(f"{source.path} is a manifest already: train with {quote_word(f'data.manifest={source.path}')}")
    reasons = {name: why for name, form in FORMATS.items() if (why := form.fits(source))}
    columns = judge_columns(source)
    # frame folders are its own format first
    if "mmaction2" in reasons and columns.meaning not in ("label", "start total"):
        reasons = {name: reasons[name] for name in sorted(reasons, key=lambda name: name in SAME_COLUMNS[:2])}
    if not reasons:
        raise ValueError(_explain_stranger(source))
    first, *others = reasons
    differing = [name for name in others if name not in NAMED.get(first, ()) and not {first, name} <= set(SAME_COLUMNS)]
    if differing:
        fitting = "; ".join(f"{name}, as {reasons[name]}" for name in (first, *differing))
        raise ValueError(f"{source.path} fits several formats that read it differently ({fitting}): choose one with --format")
    if columns and columns.doubt and set(reasons) <= set(SAME_COLUMNS):
        forced = f"; if they are `path {columns.meaning}`, force --format {first}" if columns.meaning == "total label" else ""
        ways = f"its numbers can be read in several ways: {columns.doubt}"
        raise ValueError(f"{source.path}: {ways}. None is taken: {PART_ADVICE}{forced}")
    return Recognised(first, reasons[first], tuple(others))


def import_annotations(
    source: str | os.PathLike[str],
    *,
    format: str = "auto",
    root: str | os.PathLike[str] | None = None,
    split: str | int | None = None,
    subset: str | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> Imported:
    """Read annotations. Row paths are relative to `root`, the folder of the videos; rows whose file
    is missing are mistakes.

    Without `root` the folder of the source is used if videos of the list lie there, else no file is
    looked for.
    split: the number of a numbered split, or a subset; subset: train, val or test; labels: a class
    list.
    Raises ValueError for a source or arguments that cannot be used; mistakes in single lines are in
    the result.
    """
    with note_files_read() as files:
        imported = _import(source, format=format, root=root, split=split, subset=subset, labels=labels)
    return replace(imported, files=tuple(files))


def _import(
    path: str | os.PathLike[str],
    *,
    format: str,
    root: str | os.PathLike[str] | None,
    split: str | int | None,
    subset: str | None,
    labels: str | os.PathLike[str] | None,
) -> Imported:
    source = open_source(path)
    if format not in ("auto", *FORMATS):
        close = difflib.get_close_matches(format, FORMATS, n=1)
        raise ValueError(
            f"no format {format!r}: use {', '.join(('auto', *FORMATS))}{f'; did you mean {close[0]}?' * bool(close)}"
        )
    notes = []
    name = format
    if format == "auto":
        recognised = weigh_formats(source)
        name = recognised.format
        notes.append(f"recognised {name}: {recognised.why}")
        if recognised.others:
            alike = {name, *recognised.others} <= set(SAME_COLUMNS)
            reason = "which would read it alike" if alike else f"but {name} is the more particular"
            notes.append(f"it also fits {' and '.join(recognised.others)}, {reason}; force with --format {recognised.others[0]}")
    else:
        notes.append(f"read as {name}, as asked")
    if source.text is None and not FORMATS[name].takes_folders:
        raise ValueError(f"{source.path} is a folder: {name} takes an annotation file")
    number, subset = _resolve_split(name, split, subset)
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder: --root takes the folder that holds the videos")
    if name == "class-folders":
        if root is not None and Path(root).resolve() != source.path.resolve():
            raise ValueError(f"class folders are their own root: leave --root out, or give {root} as the source")
        root = source.path
    if labels is not None and not Path(labels).is_file():
        raise ValueError(f"no class list at {labels}: --labels takes a file with one class name a line")

    def read(root: str | os.PathLike[str] | None) -> tuple[Rows, VideoFiles]:
        videos = VideoFiles(None if root is None else Path(root))
        labels_file = None if labels is None else Path(labels)
        return FORMATS[name].read(Request(source, videos, number=number, subset=subset, labels=labels_file)), videos

    rows, videos = read(root)
    if root is None and _lie_in(source.folder, rows):
        rows, videos = read(source.folder)
        notes.append(f"no --root was given, but videos of the list were found: all are looked for below {source.folder}")
    _refuse_conflicts(rows)
    rows.mistakes.sort(key=_line_of)
    _name_by_folders(rows)
    located = [videos.locate(row.path) for row in rows.rows]
    if num_packed := sum(path != row.path for path, row in zip(located, rows.rows, strict=True)):
        rows.notes.append(
            f"{num_packed:,} of {format_count(len(rows.rows), 'row')} name a file in a tar shard below {videos.root}"
        )
        rows.rows = [replace(row, path=path) for path, row in zip(located, rows.rows, strict=True)]
    return Imported(name, rows.rows, rows.classes, rows.mistakes, notes + rows.notes + videos.describe_looser(), videos.root)


def _resolve_split(name: str, split: str | int | None, subset: str | None) -> tuple[int | None, str | None]:
    number = None
    if split is not None and str(split).isdigit():
        number = int(split)
    elif split is not None:
        if subset not in (None, split):
            raise ValueError(f"got split {split!r} and subset {subset!r}: give one of them")
        subset = str(split)
    if subset not in (None, *SUBSETS):
        raise ValueError(f"got the split {subset!r}: expected the number of a split, or {', '.join(SUBSETS)}")
    for what, value in (("number", number), ("subset", subset)):
        if value is not None and what not in FORMATS[name].takes:
            raise ValueError(f"{name} has no {'numbered splits' if what == 'number' else 'subsets'}: leave {value!r} out")
    return number, subset


def _lie_in(folder: Path, rows: Rows) -> bool:
    step = max(1, len(rows.rows) // PROBED_ROWS)
    return any(os.path.exists(folder / row.path) for row in rows.rows[::step])


def _refuse_conflicts(rows: Rows) -> None:
    """Of rows that give the same part of the same video different labels, the first is kept; the
    same label twice is noted."""
    first: dict[tuple[str, str, str], Row] = {}
    kept, num_repeated = [], 0
    for row in rows.rows:
        other = first.setdefault((row.path, str(row.start), str(row.end)), row)
        if other.label != row.label:
            rows.refuse(row.where, CONFLICT, f"{row.path} has label {row.label}, but label {other.label} in {other.where}")
            continue
        num_repeated += other is not row
        kept.append(row)
    rows.rows = kept
    if num_repeated:
        rows.notes.append(f"{format_count(num_repeated, 'row')} of earlier videos, kept: those videos count more than once")


def _line_of(mistake: Mistake) -> tuple[str, int]:
    """File and line number, to sort by."""
    file, _, line = mistake.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (mistake.where, 0)


def _name_by_folders(rows: Rows) -> None:
    """Class names from the folders, where every label from 0 on belongs to exactly one folder."""
    folders: dict[int, list[str]] = defaultdict(list)
    for row in rows.rows:
        folders[row.label].append(os.path.basename(os.path.dirname(row.path)))
    spelt = {label: merge_names(names) for label, names in folders.items()}
    names = {label: merged.names[0] for label, merged in spelt.items()}
    distinct = {normalise_name(name) for name in names.values()}
    if rows.classes or not names or len(distinct) != len(names) or any(len(merged.names) > 1 for merged in spelt.values()):
        return
    if sorted(names) == list(range(len(names))) and all(names.values()):
        rows.classes = [names[label] for label in sorted(names)]
        rows.notes.append("class names from the folders of the videos")


def _explain_stranger(source: Source) -> str:
    path = source.path
    if source.text is None:
        lists = []
        for file in sorted(path.iterdir())[:200]:
            if file.suffix.lower() in (".txt", ".csv", ".json", ".list"):
                try:
                    lists.append(f"{file.name} ({recognise(file)})")
                except ValueError:
                    continue
        if lists:
            return f"{path} is no folder of class folders or split files, but holds lists: give one of {', '.join(lists[:8])}"
        return (
            f"{path}: expected a folder of at least 2 class folders with videos, of UCF101 lists or of HMDB51 splits; "
            "a folder of videos without classes needs no import: train with data.manifest=FOLDER"
        )
    first = source.lines[0][1]
    if problems := [(number, problem) for number, line in source.lines if (problem := split_line(line).problem)]:
        number, problem = problems[0]
        return (
            f"{path}: no format fits: in {len(problems):,} of {format_count(len(source.lines), 'line')}, first in line "
            f"{number}, {problem}. "
            "Write a CSV with the columns path,label,start,end (labels are whole numbers from 0, start and end seconds), "
            "or import the folder of the class folders"
        )
    if first[0] in "[{":
        return (
            f"{path}: JSON of no known shape: expected Something-Something V2 entries with id and template, or Ego4D clips with "
            "clip_uid, video_uid and state_change (a class list such as labels.json is given as --labels)"
        )
    return (
        f"{path}: no format fits; its first line is {first[:120]!r}. Expected `path label`, `path start total label`, "
        f"UCF101, HMDB51 or Kinetics lists (a class list is given as --labels), or force one with --format {'|'.join(FORMATS)}"
    )
