"""Lists with one video or frame folder a line and whole numbers behind it, space or comma separated.

    path label                   VideoMAE (.csv), mmaction2 and PaddleVideo video lists
    path start total [label]     VideoMAEv2; `path 0 -1` is a whole video, `path 0 -1 0` in pre-training lists has no real label
    folder [offset] total label  mmaction2 rawframe lists; VideoMAEv2 fine-tuning on frames
Where total is not -1 the line means a folder of frames (img_00001.jpg), which a manifest cannot hold: the video of the same
name is taken if there is one below the root, else the line is a mistake. So is a line with several labels.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mats_ds.data.importers.labels import read_class_list
from mats_ds.data.importers.rows import FRAME_FOLDER, MALFORMED, SEVERAL_LABELS, Request, Rows
from mats_ds.data.importers.source import Source
from mats_ds.data.importers.videos import has_video_extension

SEPARATORS = re.compile(r"([\s,]+)")
NUMBER = re.compile(r"-?\d{1,18}")
JUDGED_LINES = 5000  # of a longer list, that many evenly spaced ones tell what its columns mean
FIRST_TOTAL = 1  # fewer frames than that cannot be a total
WHOLE_VIDEO = -1  # VideoMAEv2's total for a video file
FRAME_ADVICE = (
    "training reads videos, not frame folders: give --root with the videos that the frames were cut from (same names), "
    "or encode each folder (ffmpeg -framerate 25 -i FOLDER/img_%05d.jpg FOLDER.mp4) and import again"
)


@dataclass(frozen=True)
class Columns:
    """What the numbers behind the paths of a list are. meaning: `label`, `labels`, `start total`, `total label`, ...

    only_videomaev2: no other code reads it so.
    """

    meaning: str
    why: str
    only_videomaev2: bool = False


def split_line(line: str) -> tuple[str, list[int]]:
    """`some path.mp4 0 -1 3` -> path and the whole numbers at the end."""
    parts = SEPARATORS.split(line)  # fields, and between them what parts them
    first = len(parts)
    while first > 2 and NUMBER.fullmatch(parts[first - 1]):
        first -= 2
    return "".join(parts[:first]).strip('"'), [int(number) for number in parts[first + 1 :: 2]]


def judge_columns(source: Source) -> Columns | None:
    """What the columns of a list mean, judged by all of its lines; None if most lines are not `path number...`."""
    if source.text is None or source.text.lstrip()[0] in "[{":
        return None
    step = -(-len(source.lines) // JUDGED_LINES)
    lines = [split_line(line) for _, line in source.lines[::step]]
    counts = Counter(len(numbers) for path, numbers in lines if path and (numbers or has_video_extension(path)))
    if sum(counts.values()) * 2 < len(lines):
        return None
    counts.pop(0, None)  # videos without a label fit every list
    if not counts:
        return Columns("label", "every line is a video file")
    usual = counts.most_common(1)[0][0]
    filled = [(path, numbers) for path, numbers in lines if len(numbers) == usual]
    named_as_videos = sum(has_video_extension(path) for path, _ in filled) * 2 > len(filled)
    totals = [numbers[-2] for _, numbers in filled] if usual > 1 else []
    varied = counts[usual] < 0.9 * sum(counts.values())  # a few odd lines are mistakes, not another format
    most = "every line is" if counts[usual] == len(source.lines) else "most lines are"
    if usual == 1:
        return Columns("label", f"{most} `path label`")
    starts_and_totals = [tuple(numbers) for _, numbers in filled if usual == 2]
    if any(start < FIRST_TOTAL and total == WHOLE_VIDEO for start, total in starts_and_totals):
        return Columns("start total", f"{most} VideoMAEv2's `path start total` for pre-training, -1 for a whole video", True)
    if starts_and_totals and not named_as_videos and {start for start, _ in starts_and_totals} in ({0}, {1}):
        return Columns("start total", f"{most} VideoMAEv2's `folder start total` for pre-training", True)
    if named_as_videos and WHOLE_VIDEO not in totals and (varied or usual > 3 or min(totals) < 1):
        return Columns("labels", "lines hold a video and one label or several")
    if usual == 2 and varied:
        return Columns("total labels", "lines hold a frame folder, its number of frames and one label or several")
    if usual == 2:
        return Columns("total label", f"{most} `folder total label`")
    if usual == 3:
        whole = sum(total == WHOLE_VIDEO for total in totals) * 2 > len(totals)
        return Columns("start total label", f"{most} `path {'0 -1' if whole else 'start total'} label`", whole)
    return Columns("total labels", "lines hold a frame folder, its number of frames and several labels")


def fits_videomae(source: Source) -> str | None:
    columns = judge_columns(source)
    return columns.why if columns and columns.meaning == "label" else None


def fits_videomaev2(source: Source) -> str | None:
    columns = judge_columns(source)
    return columns.why if columns and columns.meaning in ("start total", "total label", "start total label") else None


def fits_mmaction2(source: Source) -> str | None:
    columns = judge_columns(source)
    return columns.why if columns and not columns.only_videomaev2 else None


def read_videomae(request: Request) -> Rows:
    return _read(request, "label")


def read_videomaev2(request: Request) -> Rows:
    columns = judge_columns(request.source)
    return _read(request, columns.meaning if columns else "start total label")


read_mmaction2 = read_videomaev2  # the columns tell the two apart, and where both fit they mean the same


def _read(request: Request, meaning: str) -> Rows:
    rows, source = Rows(), request.source
    if request.labels:
        rows.classes = read_class_list(request.labels).names
    num_columns = len(meaning.split())
    for number, line in source.lines:
        where = source.where(number)
        path, numbers = split_line(line)
        if not path or (not numbers and not has_video_extension(path)):
            rows.refuse(where, MALFORMED, f"expected `path {meaning}` with whole numbers, got {line[:120]!r}")
        elif not numbers:
            _add_video(rows, request, where, path, -1)
        elif len(numbers) > num_columns and (meaning.endswith("labels") or (meaning == "label" and has_video_extension(path))):
            labels = " ".join(map(str, numbers[num_columns - 1 :]))
            rows.refuse(where, SEVERAL_LABELS, f"{path} has the labels {labels}: a manifest row has one; keep the one to learn")
        elif len(numbers) == 2 and numbers[1] == WHOLE_VIDEO:
            _add_video(rows, request, where, path, -1)
        elif len(numbers) != num_columns:
            rows.refuse(where, MALFORMED, f"expected `path {meaning}`, got {len(numbers)} numbers: {line[:120]!r}")
        elif num_columns == 1:
            _add_video(rows, request, where, path, numbers[0])
        elif num_columns == 3 and numbers[1] == WHOLE_VIDEO:
            _add_video(rows, request, where, path, numbers[-1])
        else:
            start, total, label = {
                "start total": [*numbers, -1],
                "total label": [0, *numbers],
                "total labels": [0, *numbers],
            }.get(meaning, numbers)
            _add_frames(rows, request, where, path, start=start, total=total, label=label)
    if any(mistake.kind == FRAME_FOLDER for mistake in rows.mistakes):
        rows.notes.append(FRAME_ADVICE)
    if meaning == "start total label" and len(rows.rows) > 1 and all(row.label == 0 for row in rows.rows):
        rows.notes.append("all labels are 0, which VideoMAEv2 writes where there is none: fine for pre-training alone")
    return rows


def _add_video(rows: Rows, request: Request, where: str, path: str, label: int) -> None:
    found = request.videos.find(path)
    if found is None:
        rows.refuse_missing(where, request, path)
    else:
        rows.add(where, found, label)


def _add_frames(rows: Rows, request: Request, where: str, path: str, *, start: int, total: int, label: int) -> None:
    """The video of the frame folder's name, if there is one and the whole of it is meant."""
    if total < 1:
        rows.refuse(where, MALFORMED, f"{path} has {total} frames: expected at least 1, or -1 for a whole video")
        return
    if request.videos.known:
        found = request.videos.find_stem(path) or request.videos.find(path)
    else:
        found = path if has_video_extension(path) else None
    if found is None:
        rows.refuse(where, FRAME_FOLDER, f"{path} is a folder of {total} frames, and no video of that name is known")
    elif start > 1:
        rows.refuse(
            where,
            FRAME_FOLDER,
            f"{path}: {total} frames from frame {start} on are meant, a part of {found}: write its start and end in seconds "
            "into a CSV path,label,start,end",
        )
    else:
        rows.add(where, found, label)
