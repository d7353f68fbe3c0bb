"""Kinetics CSV (label,youtube_id,time_start,time_end,split) -> files as the usual downloaders name
them.

Looked for below the root, in any folder: YOUTUBEID_000017_000027.mp4 (cut by the downloader), else
YOUTUBEID.mp4 (the whole video, of which the manifest then names start and end); .mkv, .webm and the
other extensions too. Of several, the one in a folder of its class (with spaces or underscores),
then of its split, is taken. Test lists have no label column: label -1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from mats_ds.core.format import format_count
from mats_ds.data.list_text import column_names, find_delimiter
from mats_ds.data.prepare.importers.labels import name_classes, read_class_list
from mats_ds.data.prepare.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.prepare.importers.source import Source

NEEDED = ("youtube_id", "time_start", "time_end")
SUBSET_NAMES = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}


def read_fields(table: Iterator[list[str]], source: Source, rows: Rows) -> Iterator[list[str]]:
    """The rows of a table up to one that is no CSV, which is a mistake."""
    try:
        yield from table
    except csv.Error as error:
        rows.refuse(source.where(table.line_num), MALFORMED, f"{error}: the rest is not read")


def fits_kinetics(source: Source) -> str | None:
    if not source.lines:
        return None
    header = column_names(source.lines[0][1])
    return "its first line names youtube_id, time_start and time_end" if set(NEEDED) <= set(header) else None


def read_kinetics(request: Request) -> Rows:
    rows, source = Rows(), request.source
    if fits_kinetics(source) is None:
        raise ValueError(f"{source.path}: expected a first line label,youtube_id,time_start,time_end,split")
    table = csv.reader(io.StringIO(source.text, newline=""), delimiter=find_delimiter(source.lines[0][1]))
    header = [name.strip().lower() for name in next(fields for fields in table if any(fields))]
    entries = []
    for fields in read_fields(table, source, rows):
        where = source.where(table.line_num)
        if len(fields) >= len(header):
            entries.append((where, {name: field.strip() for name, field in zip(header, fields, strict=False)}))
        elif any(fields):
            rows.refuse(
                where,
                MALFORMED,
                f"{format_count(len(fields), 'field')}, the first line names {len(header)}: {','.join(fields)[:120]!r}",
            )
    entries = _choose_subset(entries, request.subset, rows)
    labelled = "label" in header
    classes = None
    if request.labels:
        classes = read_class_list(request.labels)
    elif labelled:
        classes = name_classes(entry["label"] for _, entry in entries if entry["label"])
        rows.notes += classes.notes
        rows.notes.append(
            f"{format_count(len(classes.names), 'class')} numbered in the order of their names; --labels FILE sets another order"
        )
    else:
        rows.notes.append("there is no label column: all labels are -1 (unknown)")
    rows.classes = classes.names if classes else []
    for where, entry in entries:
        label = -1
        if labelled and (label := classes.number_of(entry["label"])) is None:
            rows.refuse(where, UNKNOWN_LABEL, f"{entry['youtube_id']}: class {entry['label']!r} is not in the class list")
            continue
        _add_video(rows, request, where, entry, label)
    return rows


def _choose_subset(entries: list, subset: str | None, rows: Rows) -> list:
    subsets = [SUBSET_NAMES.get(entry.get("split", ""), entry.get("split", "")) for _, entry in entries]
    names = sorted(set(subsets) - {""})
    if subset is None:
        if len(names) > 1:
            rows.notes.append(f"the subsets {', '.join(names)} are taken together; --subset NAME takes one")
        return entries
    if subset not in names:
        raise ValueError(f"no row has split {subset!r}: its split column holds {', '.join(names) or 'nothing'}")
    return [entry for entry, name in zip(entries, subsets, strict=True) if name == subset]


def _add_video(rows: Rows, request: Request, where: str, entry: dict[str, str], label: int) -> None:
    youtube_id, name = entry["youtube_id"], entry.get("label", "")
    try:
        start, end = float(entry["time_start"]), float(entry["time_end"])
    except ValueError:
        start, end = 0.0, 0.0
    if not youtube_id or not 0 <= start < end:
        times = f"{entry['time_start']!r} to {entry['time_end']!r}"
        rows.refuse(where, MALFORMED, f"expected a youtube_id and 0 <= time_start < time_end, got {youtube_id!r}, {times}")
        return
    cut = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
    folders = tuple(folder for folder in (name, entry.get("split")) if folder)
    if not request.videos.known:
        rows.add(where, f"{name}/{cut}.mp4" if name else f"{cut}.mp4", label)
    elif video := request.videos.find_named(cut, folders=folders):
        rows.add(where, video, label)
    elif video := request.videos.find_named(youtube_id, folders=folders):
        rows.add(where, video, label, start, end)
    else:
        rows.refuse_missing(where, request, f"{cut} or {youtube_id}")
