"""A check, the loader and the public functions say the same of a file in the same words."""

from __future__ import annotations

import csv
import tarfile

import pytest

from mats_ds.core.clips import DAMAGED, BadClip, ClipSpec
from mats_ds.data.loading.reader import read_decoded
from mats_ds.data.prepare.checking.check_file import check_one
from mats_ds.data.video import judgement
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.frames import video_facts


def read_clip(path, *, start=0.5, stride=4, num_frames=16):
    spec = ClipSpec(path=str(path), sample=0, num_frames=num_frames, stride=stride, start=start)
    return read_decoded(spec, size=(16, 16))


def why_not(path, **how):
    """The reason that the loader gives for a clip, "" where it gives the clip."""
    try:
        read_clip(path, **how)
    except UnreadableVideo as unreadable:
        return unreadable.reason
    return ""


@pytest.mark.parametrize("kind", ["empty", "text", "garbage", "truncated", "audio", "vanished", "folder"])
def test_of_an_unreadable_file_everybody_gives_one_reason(write_broken, kind):
    path = str(write_broken(kind))
    outcome = check_one(path)
    assert outcome.facts is None and outcome.problem
    assert why_not(path) == outcome.problem
    with pytest.raises(ValueError) as caught:
        video_facts(path)
    assert str(caught.value) == f"{path}: {outcome.problem}"


def test_a_file_that_breaks_late_is_damaged_in_part_for_the_check_and_for_the_loader(write_video, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 25)
    facts = check_one(str(path)).facts
    assert facts.damage.startswith(DAMAGED) and "frames 0 to 24 can be used" in facts.damage
    assert why_not(path, start=0.99, stride=1) == facts.damage == why_not(path, stride=4)
    assert why_not(path, start=0.0, stride=1) == "", "what it needs is sound"
    assert BadClip(str(path), 0, facts.damage).verdict.startswith(f"damaged in part: {path}: decodes up to frame 25 of 40")


def test_of_a_member_of_a_shard_the_loader_says_what_it_says_of_the_file(write_video, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 25)
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(path, arcname="a.mp4")
    member = f"{shard}#a.mp4"
    assert why_not(member, stride=4) == check_one(member).facts.damage == why_not(path, stride=4)


def test_a_file_that_breaks_early_is_unreadable_for_both(write_video, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 10)
    problem = check_one(str(path)).problem
    assert "10 of 40" in problem and why_not(path) == problem
    assert BadClip(str(path), 0, problem).verdict == f"unreadable: {path}: {problem}"


def test_a_long_file_is_not_decoded_to_its_end_for_a_sentence(write_video, tmp_path, break_packet, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 25)

    def never_done(container, stream, *, on_beat):
        while True:
            on_beat()

    monkeypatch.setattr(judgement, "record", never_done)
    monkeypatch.setattr(judgement, "JUDGE_SECONDS", 0.01)
    reason = why_not(path)
    assert reason.startswith(DAMAGED) and "frame 26" in reason


def test_a_part_that_holds_no_frame_is_named_alike(write_video, tmp_path):
    from mats_ds.data.manifest import read_manifest
    from mats_ds.data.prepare.checking.check_set import check_manifest

    path = write_video(tmp_path / "a.mp4", num_frames=20)
    (tmp_path / "list.csv").write_text(f"path,start,end\n{path},7,9\n")
    [bad] = check_manifest(read_manifest(tmp_path / "list.csv"), out=tmp_path / "out.csv", num_workers=1).bad
    with pytest.raises(UnreadableVideo) as caught:
        spec = ClipSpec(path=str(path), sample=0, num_frames=4, stride=1, start=0.0, first_seconds=7.0, last_seconds=9.0)
        read_decoded(spec, size=(16, 16))
    assert caught.value.reason == bad.reason


@pytest.mark.slow
def test_real_odd_files_are_judged_alike(real_videos):
    """Of every file that is no plain video: a clip that does not come has the check's reason."""
    folder = real_videos / "real" / "edge"
    if not folder.is_dir():
        pytest.skip("no real videos here")
    disagree = {}
    for path in sorted(folder.iterdir()):
        outcome = check_one(str(path))
        said = {why_not(path, start=start) for start in (0.0, 0.5, 0.99)} - {""}
        wanted = {outcome.problem or outcome.facts.damage} - {""}
        if not said <= wanted or (outcome.problem and not said):
            disagree[path.name] = said, wanted
    assert disagree == {}


def test_the_public_words_of_a_row_are_those_of_its_file(tmp_path, write_broken):
    from mats_ds.prepare import main

    path = write_broken("text")
    assert main(["check", str(path.parent), "--out", str(tmp_path / "out.csv"), "--workers", "1"]) == 0
    with open(tmp_path / "quarantine.csv", newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons[str(path)] == why_not(path)
