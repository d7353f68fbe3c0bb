"""Lists with one video or frame folder a line and whole numbers behind it, space or comma
separated.

    path label                   VideoMAE (.csv), mmaction2 and PaddleVideo video lists
    path start total [label]     VideoMAEv2; `path 0 -1` is a whole video, `path 0 -1 0` in pre-
                                 training lists has no real label
    folder [offset] total label  mmaction2 rawframe lists; VideoMAEv2 fine-tuning on frames
Where total is not -1 the line means a folder of frames (img_00001.jpg), which a manifest cannot
hold: the video of the same name is taken if there is one below the root, else the line is a
mistake. So is a line with several labels, and one that means a part of a video by numbers of
frames. A list whose numbers can be read in two ways is read in none, unless its format is given.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mats_ds.core.format import format_count
from mats_ds.data.list_text import ListLine, has_video_extension, split_line
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.prepare.importers.rows import FRAME_FOLDER, MALFORMED, SEVERAL_LABELS, Request, Rows
from mats_ds.data.prepare.importers.source import Source

JUDGED_LINES = 5000  # of a longer list, that many evenly spaced ones decide what its columns mean
FIRST_TOTAL = 1  # fewer frames than that cannot be a total
WHOLE_VIDEO = -1  # VideoMAEv2's total for a video file
FRAME_ADVICE = (
    "training reads videos, not frame folders: give --root with the videos that the frames were cut from (same names), "
    "or encode each folder (ffmpeg -framerate 25 -i FOLDER/img_%05d.jpg FOLDER.mp4) and import again"
)


PART_ADVICE = "write the part in seconds into a CSV path,label,start,end"


@dataclass(frozen=True)
class Columns:
    """Meaning of the numbers behind the paths of a list. meaning: `label`, `labels`, `start total`,
    `total label`, ...

    only_videomaev2: no other code reads it so. doubt: the other way in which the list can be read,
    if there is one.
    """

    meaning: str
    why: str
    only_videomaev2: bool = False
    doubt: str | None = None


def judge_columns(source: Source) -> Columns | None:
    """Meaning of the columns of a list, judged by all of its lines; None if most lines are not
    `path number...`."""
    if source.text is None or source.text.lstrip()[0] in "[{":
        return None
    step = -(-len(source.lines) // JUDGED_LINES)
    lines = [split_line(line) for _, line in source.lines[::step]]
    usable = [line for line in lines if line.path and not line.problem and (line.numbers or line.is_video)]
    if len(usable) * 2 < len(lines):
        return None
    counts = Counter(len(line.numbers) for line in usable)
    counts.pop(0, None)  # videos without a label fit every list
    if not counts:
        return Columns("label", "every line is a video file")
    usual = counts.most_common(1)[0][0]
    filled = [line for line in usable if len(line.numbers) == usual]
    every = counts[usual] == len(source.lines)
    most = "every line is" if every else "most lines are"
    if usual == 1:
        return Columns("label", f"{most} `path label`")
    # a few odd lines are mistakes, not another format
    varied = counts[usual] < 0.9 * sum(counts.values())
    named_as_videos = sum(line.is_video for line in filled) * 2 > len(filled)
    judge = {2: _judge_two, 3: _judge_three}.get(usual, _judge_many)
    return judge(filled, most=most, named_as_videos=named_as_videos, varied=varied)


def _judge_two(lines: Sequence[ListLine], *, most: str, named_as_videos: bool, varied: bool) -> Columns:
    pairs = [line.numbers for line in lines]
    if any(start < FIRST_TOTAL and total == WHOLE_VIDEO for start, total in pairs):
        return Columns("start total", f"{most} VideoMAEv2's `path start total` for pre-training, -1 for a whole video", True)
    if not named_as_videos and {start for start, _ in pairs} in ({0}, {1}):
        return Columns("start total", f"{most} VideoMAEv2's `folder start total` for pre-training", True)
    if varied:
        what = "a video and" if named_as_videos else "a frame folder, its number of frames and"
        return Columns("labels" if named_as_videos else "total labels", f"lines hold {what} one label or several")
    doubt = None
    if min(pairs)[0] < FIRST_TOTAL:
        fewest = min(pairs)[0]
        doubt = f"the number of frames and a label, but one line says {fewest} frames; or two labels; or first and last frame"
    elif named_as_videos and len(pairs) > 1 and all(second > first for first, second in pairs):
        doubt = "the number of frames and a label; or first and last frame, as the second is larger in every line"
    return Columns("total label", f"{most} `folder total label`", doubt=doubt)


def _judge_three(lines: Sequence[ListLine], *, most: str, named_as_videos: bool, varied: bool) -> Columns:
    are_complete = sum(line.numbers[1] == WHOLE_VIDEO for line in lines) * 2 > len(lines)
    if named_as_videos and varied and not any(line.numbers[1] == WHOLE_VIDEO for line in lines):
        return Columns("labels", "lines hold a video and one label or several")
    doubt = None
    if named_as_videos and not are_complete:
        doubt = "first frame, number of frames and label; or first frame, last frame and label; or three labels"
    return Columns("start total label", f"{most} `path {'0 -1' if are_complete else 'start total'} label`", are_complete, doubt)


def _judge_many(lines: Sequence[ListLine], *, most: str, named_as_videos: bool, varied: bool) -> Columns:
    if named_as_videos:
        return Columns("labels", "lines hold a video and one label or several")
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


# the columns distinguish the two, and where both fit they mean the same
read_mmaction2 = read_videomaev2


def _read(request: Request, meaning: str) -> Rows:
    rows, source = Rows(), request.source
    if request.labels:
        rows.classes = read_class_list(request.labels).names
    num_columns = len(meaning.split())
    lines = [(source.where(number), text, split_line(text)) for number, text in source.lines]
    in_parts = _find_parts([line for _, _, line in lines]) if meaning in ("total label", "start total label") else {}
    for where, text, line in lines:
        path, numbers = line.path, line.numbers
        if line.problem or not path or (not numbers and not line.is_video):
            problem = f": {line.problem}" if line.problem else ""
            rows.refuse(where, MALFORMED, f"expected `path {meaning}` with whole numbers, got {text[:120]!r}{problem}")
        elif not numbers:
            _add_video(rows, request, where, path, -1)
        elif len(numbers) > num_columns and (meaning.endswith("labels") or (meaning == "label" and line.is_video)):
            labels = " ".join(map(str, numbers[num_columns - 1 :]))
            rows.refuse(where, SEVERAL_LABELS, f"{path} has the labels {labels}: a manifest row has one; keep the one to learn")
        elif len(numbers) == 2 and numbers[1] == WHOLE_VIDEO:
            _add_video(rows, request, where, path, -1)
        elif len(numbers) != num_columns:
            rows.refuse(
                where, MALFORMED, f"expected `path {meaning}`, got {format_count(len(numbers), 'number')}: {text[:120]!r}"
            )
        elif num_columns == 1:
            _add_video(rows, request, where, path, numbers[0])
        elif num_columns == 3 and numbers[1] == WHOLE_VIDEO:
            _add_video(rows, request, where, path, numbers[-1])
        elif path in in_parts:
            what = f"the list means {in_parts[path]} parts of {path} by frames, not the whole: {PART_ADVICE}"
            rows.refuse(where, FRAME_FOLDER, what)
        elif num_columns == 3 and line.is_video:
            part = f"{path} {numbers[0]} {numbers[1]} means a part by its frames (first and last, or first and number)"
            rows.refuse(where, FRAME_FOLDER, f"{part}: {PART_ADVICE}")
        else:
            start, total, label = {
                "start total": [*numbers, -1],
                "total label": [0, *numbers],
                "total labels": [0, *numbers],
            }.get(meaning, numbers)
            _add_frames(rows, request, where, path, start=start, total=total, label=label)
    if any(mistake.kind == FRAME_FOLDER for mistake in rows.mistakes):
        rows.notes.append(FRAME_ADVICE)
    _note_labels(rows, meaning)
    return rows


def _find_parts(lines: Sequence[ListLine]) -> dict[str, int]:
    """Paths of which several lines mean different frames -> how many parts."""
    parts: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for line in lines:
        if len(line.numbers) > 1 and line.numbers[-2] != WHOLE_VIDEO:
            parts[line.path].add(line.numbers[:-1])
    return {path: len(rows) for path, rows in parts.items() if len(rows) > 1}


def _note_labels(rows: Rows, meaning: str) -> None:
    """Remarks on odd labels, which may be meant so."""
    labels = [row.label for row in rows.rows]
    labelled = [label for label in labels if label >= 0]
    if meaning == "start total label" and len(labels) > 1 and not any(labels):
        rows.notes.append("all labels are 0, which VideoMAEv2 writes where there is none: fine for pre-training alone")
    if labelled and len(labelled) < len(labels):
        rows.notes.append(f"{len(labels) - len(labelled)} of {format_count(len(labels), 'row')} have no label: -1 (unknown)")
    if len(set(labelled)) > 1 and min(labelled) == 1 and sorted(set(labelled)) == list(range(1, max(labelled) + 1)):
        rows.notes.append(f"the labels run from 1 to {max(labelled)} and none is 0: if the list counts from 1, take 1 from each")


def _add_video(rows: Rows, request: Request, where: str, path: str, label: int) -> None:
    video = request.videos.find(path)
    if video is None:
        rows.refuse_missing(where, request, path)
    else:
        rows.add(where, video, label)


def _add_frames(rows: Rows, request: Request, where: str, path: str, *, start: int, total: int, label: int) -> None:
    """The video of the frame folder's name, if there is one and the whole of it is meant."""
    if total < 1:
        rows.refuse(where, MALFORMED, f"{path} has {format_count(total, 'frame')}: expected at least 1, or -1 for a whole video")
        return
    if request.videos.known:
        video = request.videos.find_stem(path) or request.videos.find(path)
    else:
        video = path if has_video_extension(path) else None
    if video is None:
        rows.refuse(
            where, FRAME_FOLDER, f"{path} is a folder of {format_count(total, 'frame')}, and no video of that name is known"
        )
    elif start > 1:
        rows.refuse(
            where,
            FRAME_FOLDER,
            f"{path}: {format_count(total, 'frame')} from frame {start} on are meant, a part of {video}: write its "
            f"start and end in seconds "
            "into a CSV path,label,start,end",
        )
    else:
        rows.add(where, video, label)
