"""A folder with a folder of videos for each class: CLASS/video.mp4, or train/CLASS/video.mp4 with
--subset train.

Classes are numbered in the order of their names, over all subsets, unless a class list is given.
"""

from __future__ import annotations

from mats_ds.core.format import format_count
from mats_ds.data.class_names import normalise_name
from mats_ds.data.manifest import list_videos
from mats_ds.data.prepare.importers.labels import name_classes, read_class_list
from mats_ds.data.prepare.importers.rows import MALFORMED, UNKNOWN_LABEL, Request, Rows
from mats_ds.data.prepare.importers.source import Source

SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MIN_CLASSES = 2


def fits_class_folders(source: Source) -> str | None:
    if source.text is not None:
        return None
    paths = list_videos(source.path)
    classes = {normalise_name(name) for path in paths if (name := _split_path(path, _has_subsets(paths))[1])}
    if len(classes) < MIN_CLASSES or any("/" not in path for path in paths):
        return None
    subsets = " in subset folders" if _has_subsets(paths) else ""
    return f"its videos lie in {format_count(len(classes), 'class folder')}{subsets}"


def read_class_folders(request: Request) -> Rows:
    folder = request.source.path
    if request.source.text is not None:
        raise ValueError(f"{folder} is a file: class-folders takes the folder that holds the class folders")
    paths = sorted(request.videos.paths, key=lambda path: path.split("/"))
    in_subsets = _has_subsets(paths)
    split = {path: _split_path(path, in_subsets) for path in paths}
    subsets = sorted({subset for subset, _ in split.values() if subset})
    if request.subset is not None and request.subset not in subsets:
        raise ValueError(f"{folder} has no folder for {request.subset}: it has {', '.join(subsets) or 'class folders only'}")
    if request.subset is None and len(subsets) > 1:
        raise ValueError(f"{folder} holds the subsets {', '.join(subsets)}: choose one with --subset {'|'.join(subsets)}")
    classes = read_class_list(request.labels) if request.labels else name_classes(name for _, name in split.values() if name)
    rows = Rows(classes=classes.names, notes=list(classes.notes))
    if not request.labels:
        over = f", over {' and '.join(subsets)} together" if len(subsets) > 1 else ""
        rows.notes.append(f"classes numbered in the order of their names{over}; --labels FILE sets another order")
    for path, (subset, name) in split.items():
        where = ascii(f"{folder}/{path}")[1:-1] if not path.isprintable() else f"{folder}/{path}"
        if request.subset is not None and subset != request.subset:
            continue
        if name is None:
            rows.refuse(where, MALFORMED, "lies in no class folder: expected CLASS/video")
        elif (label := classes.number_of(name)) is None:
            rows.refuse(where, UNKNOWN_LABEL, f"class {name!r} is not in {request.labels}")
        else:
            rows.add(where, path, label)
    return rows


def _has_subsets(paths: list[str]) -> bool:
    """Whether all top folders are called train, val or test and class folders lie in them."""
    parts = [path.split("/") for path in paths]
    return bool(parts) and all(len(part) > 2 and part[0].lower() in SUBSETS for part in parts)


def _split_path(path: str, in_subsets: bool) -> tuple[str | None, str | None]:
    """Subset and class of a video, None where there is none."""
    folders = path.split("/")[:-1]
    subset = SUBSETS[folders.pop(0).lower()] if in_subsets else None
    return subset, folders[0] if folders else None
