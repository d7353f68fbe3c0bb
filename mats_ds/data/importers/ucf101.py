"""UCF101's lists: classInd.txt (`1 ApplyEyeMakeup`), trainlistNN.txt (`Class/video.avi 1`), testlistNN.txt (`Class/video.avi`).

Labels count from 1 in the lists and from 0 in the manifest. A test list has none: the folder names the class.
Source: the folder that holds them with --split 1|2|3 and --subset train|test, or one of the lists.
"""

from __future__ import annotations

import re
from pathlib import Path

from mats_ds.data.importers.labels import read_class_list
from mats_ds.data.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.importers.source import Source, open_source

LIST_NAME = re.compile(r"(train|test)list(\d+)\.txt", re.IGNORECASE)
CLASS_LIST = "classInd.txt"


def fits_ucf101(source: Source) -> str | None:
    if source.text is not None:
        return f"it is called {source.place.name}" if LIST_NAME.fullmatch(source.place.name) else None
    found = _find_lists(source.place)
    return f"it holds {', '.join(sorted(path.name for path in found.values())[:3])}, ..." if found else None


def read_ucf101(request: Request) -> Rows:
    source = request.source
    if source.text is None:
        source = open_source(_choose_list(source.place, request))
    elif not _is_asked_for(source.place, request):
        asked = f"split {request.number}, subset {request.subset}"
        raise ValueError(f"{source.place} is not {asked}: leave --split and --subset out, or give the folder of the lists")
    class_file = request.labels or source.place.parent / CLASS_LIST
    if not class_file.exists():
        raise ValueError(f"no {CLASS_LIST} beside {source.place}, which names the classes: put it there or give it as --labels")
    classes = read_class_list(class_file)
    rows = Rows(classes=classes.names)
    rows.notes.append(f"read {source.place.name} with the classes of {class_file.name}; labels are counted from 0")
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
            said = f"label {match['label']}, but {match['folder']} is number {label + 1} in {class_file.name}"
            rows.refuse(where, UNKNOWN_LABEL, f"{path}: {said}")
        elif (found := request.videos.find(path)) is None:
            rows.refuse_missing(where, request, path)
        else:
            rows.add(where, found, label)
    return rows


def _is_asked_for(place: Path, request: Request) -> bool:
    match = LIST_NAME.fullmatch(place.name)
    return match is None or (request.number in (None, int(match[2])) and request.subset in (None, match[1].lower()))


def _find_lists(folder: Path) -> dict[tuple[str, int], Path]:
    """(train or test, split) -> list."""
    matches = ((path, LIST_NAME.fullmatch(path.name)) for path in folder.iterdir())
    return {(match[1].lower(), int(match[2])): path for path, match in matches if match}


def _choose_list(folder: Path, request: Request) -> Path:
    found = _find_lists(folder)
    if not found:
        raise ValueError(f"no trainlist01.txt or testlist01.txt in {folder}: give UCF101's folder of lists, or one list")
    numbers = sorted({number for _, number in found})
    number = request.number if request.number is not None or len(numbers) > 1 else numbers[0]
    if (request.subset, number) not in found:
        offered = ", ".join(path.name for _, path in sorted(found.items()))
        raise ValueError(
            f"{folder} holds {offered}: choose one with --split {'|'.join(map(str, numbers))} --subset train|test "
            f"(got split {request.number}, subset {request.subset})"
        )
    return found[request.subset, number]
