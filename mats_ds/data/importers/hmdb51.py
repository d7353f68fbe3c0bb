"""HMDB51's split files, one a class and split: NAME_test_split1.txt with lines `video.avi 1` (1 train, 2 test, 0 unused).

The class is the file's prefix; classes are numbered in the order of their names, as in mmaction2, unless a class list is given
(that of Temporal Segment Networks has kick_ball before kick). Source: the folder of split files with --split 1|2|3, or one of
them; --subset train|test. Videos lie in a folder a class, as unpacked from the archives, or all in one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mats_ds.data.importers.labels import ClassList, name_classes, read_class_list
from mats_ds.data.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.importers.source import Source, open_source

SPLIT_NAME = re.compile(r"(.+)_test_split(\d)\.txt", re.IGNORECASE)
FLAGS = {"train": "1", "test": "2"}
UNUSED = "0"


def fits_hmdb51(source: Source) -> str | None:
    if source.text is not None:
        return f"it is called {source.place.name}" if SPLIT_NAME.fullmatch(source.place.name) else None
    found = _find_splits(source.place)
    return f"it holds {len(found)} files such as {min(found.values()).name}" if found else None


def read_hmdb51(request: Request) -> Rows:
    source = request.source
    splits = _find_splits(source.folder)
    if request.subset not in FLAGS:
        raise ValueError(f"HMDB51's split files mix train and test: give --subset train or --subset test (got {request.subset})")
    if not splits:
        raise ValueError(f"no file such as wave_test_split1.txt in {source.folder}: give HMDB51's folder of split files")
    numbers = sorted({number for _, number in splits})
    number = request.number
    if source.text is not None:
        match = SPLIT_NAME.fullmatch(source.place.name)
        if match is None or number not in (None, int(match[2])):
            asked = "" if number is None else f" of split {number}"
            raise ValueError(f"{source.place} is no split file{asked}: expected a name such as wave_test_split{number or 1}.txt")
        files = [source.place]
    elif number in numbers:
        files = [path for (_, of), path in sorted(splits.items()) if of == number]
    else:
        offered = "|".join(map(str, numbers))
        raise ValueError(f"{source.place} holds the splits {offered}: choose one with --split {offered} (got {number})")
    names = {name for name, _ in splits}
    classes = read_class_list(request.labels) if request.labels else name_classes(names)
    rows = Rows(classes=classes.names, notes=list(classes.notes))
    if not request.labels:
        rows.notes.append(f"{len(names)} classes numbered in the order of their names; --labels FILE sets another order")
    for file in files:
        _read_split(request, rows, open_source(file), classes)
    return rows


def _find_splits(folder: Path) -> dict[tuple[str, int], Path]:
    """(class, split) -> file."""
    matches = ((path, SPLIT_NAME.fullmatch(path.name)) for path in folder.iterdir())
    return {(match[1], int(match[2])): path for path, match in matches if match}


def _read_split(request: Request, rows: Rows, source: Source, classes: ClassList) -> None:
    name = SPLIT_NAME.fullmatch(source.place.name)[1]
    label = classes.number_of(name)
    if label is None:
        rows.refuse(source.where(1), UNKNOWN_LABEL, f"class {name!r} is not in {request.labels}: its videos are left out")
        return
    for number, line in source.lines:
        where = source.where(number)
        *file, flag = line.rsplit(None, 1)
        if flag not in (UNUSED, *FLAGS.values()) or not file:
            rows.refuse(where, MALFORMED, f"expected `video.avi 0|1|2`, got {line[:120]!r}")
        elif flag == FLAGS[request.subset]:
            path, stem = f"{name}/{file[0]}", os.path.splitext(file[0])[0]
            found = request.videos.find_named(stem, folders=(name,)) if request.videos.known else path
            if found is None:
                rows.refuse_missing(where, request, path)
            else:
                rows.add(where, found, label)
