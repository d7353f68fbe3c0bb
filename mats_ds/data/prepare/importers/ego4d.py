"""Ego4D state changes (fho_oscc-pnr_*.json, a list or under `clips`) -> 0 no state change, 1 state
change, -1 unannotated.

The first of these that lies below the root is taken: UNIQUEID (the part itself, cut out), CLIPUID
with clip_start_sec and clip_end_sec, VIDEOUID with parent_start_sec and parent_end_sec; any video
extension. Without a root: the clip where its uid is there, else the video. The time of the point of
no return (PNR) has no place in a manifest and is left out.
"""

from __future__ import annotations

import math

from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.prepare.importers.rows import MALFORMED, Request, Rows
from mats_ds.data.prepare.importers.source import Source

CLASSES = ("no state change", "state change")
UIDS = ("unique_id", "clip_uid", "video_uid")
TIMES = {"clip_uid": ("clip_start_sec", "clip_end_sec"), "video_uid": ("parent_start_sec", "parent_end_sec")}


def fits_ego4d(source: Source) -> str | None:
    entries = [entry for _, entry in (source.entries or [])[:100]]
    times = [name for pair in TIMES.values() for name in pair]
    if entries and all(isinstance(entry, dict) and any(uid in entry for uid in UIDS) for entry in entries):
        columns = [name for name in ("state_change", *times) if any(name in entry for entry in entries)]
        return f"its entries have video_uid, {', '.join(columns[:2])}" if columns else None
    return None


def read_ego4d(request: Request) -> Rows:
    source = request.source
    if source.entries is None:
        raise ValueError(f"{source.path}: expected a JSON list of clips, or one under the key clips")
    rows = Rows(classes=read_class_list(request.labels).names if request.labels else list(CLASSES))
    annotated = any(isinstance(entry, dict) and entry.get("state_change") is not None for _, entry in source.entries)
    if not annotated:
        rows.notes.append("no entry has state_change (an unannotated test file): all labels are -1 (unknown)")
    for number, entry in source.entries:
        where = source.where(number)
        if not isinstance(entry, dict) or not any(_text(entry, uid) for uid in UIDS):
            rows.refuse(where, MALFORMED, f"expected a clip with clip_uid or video_uid, got {str(entry)[:120]}")
            continue
        change = entry.get("state_change")
        if (change is None and annotated) or change not in (None, False, True):
            rows.refuse(where, MALFORMED, f"{_name(entry)}: state_change is {change!r}, expected true or false")
            continue
        _add_part(rows, request, where, entry, -1 if change is None else int(change))
    return rows


def _add_part(rows: Rows, request: Request, where: str, entry: dict, label: int) -> None:
    if request.videos.known:
        uids = [(uid, request.videos.find_named(_text(entry, uid))) for uid in UIDS if _text(entry, uid)]
        uid, video = next(((uid, video) for uid, video in uids if video), (None, None))
    else:
        uid = next((uid for uid in ("clip_uid", "video_uid") if _text(entry, uid)), "unique_id")
        video = f"{entry[uid]}.mp4"
    if video is None:
        wanted = " or ".join(f"{_text(entry, uid)}.mp4" for uid in UIDS[1:] if _text(entry, uid))
        rows.refuse_missing(where, request, wanted or f"{_name(entry)}.mp4")
        return
    start, end = (entry.get(name) for name in TIMES.get(uid, ("", "")))
    if uid in TIMES and (not _is_time(start) or not _is_time(end) or (start is None) != (end is None)):
        names = " and ".join(TIMES[uid])
        rows.refuse(where, MALFORMED, f"{_name(entry)}: expected numbers of seconds in {names}, got {start!r} and {end!r}")
        return
    rows.add(where, video, label, *(math.nan if time is None else float(time) for time in (start, end)))


def _is_time(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _text(entry: dict, name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _name(entry: dict) -> str:
    return next(_text(entry, uid) for uid in UIDS if _text(entry, uid))
