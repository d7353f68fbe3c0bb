"""What a check says in words: routes, advice, and the bad ones grouped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mats_ds.data.prepare.checking.check_file import FileFacts
from mats_ds.data.prepare.checking.check_report import summarize
from mats_ds.data.prepare.checking.check_set import BadRow, CheckResult

PLAIN = FileFacts(
    num_frames=300,
    fps=30.0,
    vfr=False,
    codec="h264",
    profile="High",
    pixel_format="yuv420p",
    gop=12,
    gop_max=12,
    mirrored=False,
    rotation=0,
    width=340,
    height=256,
    first_frame_seconds=0.0,
    duration_seconds=10.0,
    decode_seconds=0.2,
    clip_seconds=0.05,
    bytes=1 << 20,
    num_video_streams=1,
    cpu_reason="",
)


def summary_of(*changes, bad=(), num_decoded=0):
    facts = {f"{number}.mp4": dataclasses.replace(PLAIN, **change) for number, change in enumerate(changes)}
    result = CheckResult(facts, list(bad), len(facts) + len(bad), num_decoded, wall_seconds=7.0)
    return summarize(result, out=Path("lists/my clips.csv"), root="/data")


def test_good_files_need_few_words():
    said = summary_of({}, {}, num_decoded=2)
    assert "2 readable files: 20.0 seconds, 2.0 MiB. 2 files decoded in 7 s." in said
    assert said.splitlines()[2].split() == ["h264", "2", "20.0", "2", "0"]
    assert "one core decodes 20.0 clips/s" in said and "Quarantine: none of 2 rows." in said
    for word in ("transcode", "varies", "Short", "Left to the CPU", "Warnings"):
        assert word not in said


def test_long_sets_are_told_in_hours():
    said = summary_of({"duration_seconds": 9000.0, "bytes": 3 << 30})
    assert "1 readable file: 2.5 hours, 3.00 GiB." in said
    assert said.splitlines()[1].split()[2] == "hours" and said.splitlines()[2].split()[2] == "2.5"


def test_says_what_to_do():
    said = summary_of(
        {"gop": 250, "gop_max": 250, "cpu_reason": "rotation"},
        {"gop": 100, "vfr": True, "cpu_reason": "rotation"},
        {"codec": "vp9", "num_frames": 10, "warnings": ("10 frames: a clip of 16 repeats some",)},
        {"num_frames": 40, "width": 1920, "height": 1080, "decode_seconds": 5.0},
    )
    assert "Left to the CPU because of: rotation (2)." in said
    assert "Within 1 file it varies:" in said
    assert "Short: 2 files of fewer than 64 frames" in said and "; 1, below 16 frames, repeat some" in said
    assert "every 56 frames (median; 12 to 250). 2 files are above 32" in said and "every 56" in said
    assert said.count("prepare transcode 'lists/my clips.csv' --root /data --out lists/copies`") == 2
    assert "Largest pictures: 1920x1080 (1), 340x256 (3)." in said
    assert said.split("Slowest")[1].splitlines()[1].split()[:2] == ["500", "3.mp4"]


def test_the_bad_are_grouped_by_reason():
    rows = [BadRow(f"{number}.mp4", -1, f"only {number} of 40 frames in a row decode") for number in (3, 5)]
    said = summary_of({}, bad=[*rows, BadRow("x.mp4", -1, "encrypted")])
    assert said.splitlines()[-5:] == [
        "Quarantine: 3 of 4 rows.",
        "       2  only 3 of 40 frames in a row decode",
        "          3.mp4 and 1 more",
        "       1  encrypted",
        "          x.mp4",
    ]
    assert summary_of(bad=rows).startswith("0 readable files")


@pytest.mark.parametrize("gop", [1, 32])
def test_close_keyframes_need_no_copies(gop):
    assert "transcode" not in summary_of({"gop": gop})


def test_what_is_damaged_in_part_is_told_from_what_is_odd():
    damage = "damaged in part: decodes up to frame 28 of 50, then: the data there is damaged; frames 0 to 27 can be used"
    lines = summary_of({"warnings": (damage, "2 video streams, number 3 is used")}, {}).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Damaged in part"))
    assert lines[at + 1].split(maxsplit=1) == ["1", damage.removeprefix("damaged in part: ")]
    assert lines[at + 3].startswith("Warnings") and "2 video streams" in lines[at + 4]
