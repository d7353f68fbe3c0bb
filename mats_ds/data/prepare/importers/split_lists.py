"""UCF101's lists: classInd.txt (`1 ApplyEyeMakeup`), trainlistNN.txt (`Class/video.avi 1`),
testlistNN.txt (`Class/video.avi`).

Labels count from 1 in the lists and from 0 in the manifest. A test list has none: the folder names
the class.
Source: the folder that holds them with --split 1|2|3 and --subset train|test, or one of the lists.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mats_ds.core.format import format_count
from mats_ds.data.prepare.importers.labels import ClassList, name_classes, read_class_list
from mats_ds.data.prepare.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.prepare.importers.source import Source, open_source

LIST_NAME = re.compile(r"(train|test)list(\d+)\.txt", re.IGNORECASE)
CLASS_LIST = "classInd.txt"


def fits_ucf101(source: Source) -> str | None:
    if source.text is not None:
        return f"it is called {source.path.name}" if LIST_NAME.fullmatch(source.path.name) else None
    lists = _find_lists(source.path)
    return f"it holds {', '.join(sorted(path.name for path in lists.values())[:3])}, ..." if lists else None


def read_ucf101(request: Request) -> Rows:
    source = request.source
    if source.text is None:
        source = open_source(_choose_list(source.path, request))
    elif not _is_asked_for(source.path, request):
        asked = f"split {request.number}, subset {request.subset}"
        raise ValueError(f"{source.path} is not {asked}: leave --split and --subset out, or give the folder of the lists")
    class_file = request.labels or source.path.parent / CLASS_LIST
    if not class_file.exists():
        raise ValueError(f"no {CLASS_LIST} beside {source.path}, which names the classes: put it there or give it as --labels")
    classes = read_class_list(class_file)
    rows = Rows(classes=classes.names)
    rows.notes.append(f"read {source.path.name} with the classes of {class_file.name}; labels are counted from 0")
    for number, line in source.lines:
        where = source.where(number)
        match = re.fullmatch(r"(?P<path>(?:.*[/\\])?(?P<folder>[^/\\]+)[/\\][^/\\]+?\.\w+)(?:\s+(?P<label>-?\d+))?", line)
        if match is None:
            rows.refuse(where, MALFORMED, f"expected `Class/video.avi` with or without a label from 1, got {line[:120]!r}")
            continue
        path, label = match["path"], classes.number_of(match["folder"])
        if label is None:
            rows.refuse(where, UNKNOWN_LABEL, f"{path}: class {match['folder']!r} is not in {class_file.name}")
        elif match["label"] and int(match["label"]) - 1 != label:
            problem = f"label {match['label']}, but {match['folder']} is number {label + 1} in {class_file.name}"
            rows.refuse(where, UNKNOWN_LABEL, f"{path}: {problem}")
        elif (video := request.videos.find(path)) is None:
            rows.refuse_missing(where, request, path)
        else:
            rows.add(where, video, label)
    return rows


def _is_asked_for(path: Path, request: Request) -> bool:
    match = LIST_NAME.fullmatch(path.name)
    return match is None or (request.number in (None, int(match[2])) and request.subset in (None, match[1].lower()))


def _find_lists(folder: Path) -> dict[tuple[str, int], Path]:
    """(train or test, split) -> list."""
    matches = ((path, LIST_NAME.fullmatch(path.name)) for path in folder.iterdir())
    return {(match[1].lower(), int(match[2])): path for path, match in matches if match}


def _choose_list(folder: Path, request: Request) -> Path:
    lists = _find_lists(folder)
    if not lists:
        raise ValueError(f"no trainlist01.txt or testlist01.txt in {folder}: give UCF101's folder of lists, or one list")
    numbers = sorted({number for _, number in lists})
    number = request.number if request.number is not None or len(numbers) > 1 else numbers[0]
    if (request.subset, number) not in lists:
        offered = ", ".join(path.name for _, path in sorted(lists.items()))
        raise ValueError(
            f"{folder} holds {offered}: choose one with --split {'|'.join(map(str, numbers))} --subset train|test "
            f"(got split {request.number}, subset {request.subset})"
        )
    return lists[request.subset, number]


SPLIT_NAME = re.compile(r"(.+)_test_split(\d)\.txt", re.IGNORECASE)
FLAGS = {"train": "1", "test": "2"}
UNUSED = "0"


def fits_hmdb51(source: Source) -> str | None:
    if source.text is not None:
        return f"it is called {source.path.name}" if SPLIT_NAME.fullmatch(source.path.name) else None
    lists = _find_splits(source.path)
    return f"it holds {format_count(len(lists), 'file')} such as {min(lists.values()).name}" if lists else None


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
        match = SPLIT_NAME.fullmatch(source.path.name)
        if match is None or number not in (None, int(match[2])):
            asked = "" if number is None else f" of split {number}"
            raise ValueError(f"{source.path} is no split file{asked}: expected a name such as wave_test_split{number or 1}.txt")
        files = [source.path]
    elif number in numbers:
        files = [path for (_, of), path in sorted(splits.items()) if of == number]
    else:
        offered = "|".join(map(str, numbers))
        raise ValueError(f"{source.path} holds the splits {offered}: choose one with --split {offered} (got {number})")
    names = {name for name, _ in splits}
    classes = read_class_list(request.labels) if request.labels else name_classes(names)
    rows = Rows(classes=classes.names, notes=list(classes.notes))
    if not request.labels:
        rows.notes.append(
            f"{format_count(len(names), 'class')} numbered in the order of their names; --labels FILE sets another order"
        )
    for file in files:
        _read_split(request, rows, open_source(file), classes)
    return rows


def _find_splits(folder: Path) -> dict[tuple[str, int], Path]:
    """(class, split) -> file."""
    matches = ((path, SPLIT_NAME.fullmatch(path.name)) for path in folder.iterdir())
    return {(match[1], int(match[2])): path for path, match in matches if match}


def _read_split(request: Request, rows: Rows, source: Source, classes: ClassList) -> None:
    name = SPLIT_NAME.fullmatch(source.path.name)[1]
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
            video = request.videos.find_named(stem, folders=(name,)) if request.videos.known else path
            if video is None:
                rows.refuse_missing(where, request, path)
            else:
                rows.add(where, video, label)
