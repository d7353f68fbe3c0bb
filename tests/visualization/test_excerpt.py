"""Which frames of a video an excerpt shows, and when they are. The file has 40 frames at 20 a
second: 2 seconds."""

from __future__ import annotations

import numpy as np
import pytest

from mats_ds.config.recipe import ClipSection
from mats_ds.data.video.indexing import index_video
from mats_ds.visualization.excerpt import plan_excerpts, read_excerpt

# 12 frames, 0.6 s
SECTION = ClipSection(num_frames=4, stride=3, height=48, width=64, tubelet=(2, 16, 16))


@pytest.fixture(scope="module")
def path(write_video, tmp_path_factory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=40, height=80, width=80))


@pytest.fixture
def show(path, read_numbers):
    """The frame numbers of all clips of a plan."""

    def numbers(*, section=SECTION, num_frames=4, num_clips=1, start_seconds=None) -> list[list[int]]:
        plan = dict(section=section, num_frames=num_frames, num_clips=num_clips, start_seconds=start_seconds)
        found = []
        for spec in plan_excerpts(index_video(path), **plan):
            excerpt = read_excerpt(path, spec, height=48, width=64)
            assert excerpt.frames_THWC.shape == (num_frames, 48, 64, 3)
            found.append(read_numbers(excerpt.frames_THWC))
            np.testing.assert_allclose(excerpt.seconds_T, np.array(found[-1]) / 20, atol=1e-6)
        return found

    return numbers


def test_one_clip_is_the_middle_and_more_are_spread_from_end_to_end(show):
    assert show() == [[14, 17, 20, 23]]
    assert show(num_clips=3) == [[0, 3, 6, 9], [14, 17, 20, 23], [28, 31, 34, 37]]


def test_from_a_start_on_clips_follow_each_other_until_the_video_ends(show):
    assert show(start_seconds=0.5, num_clips=2) == [[10, 13, 16, 19], [22, 25, 28, 31]]
    # the last one has 8 frames left
    assert show(start_seconds=1.0, num_clips=9) == [[20, 23, 26, 29], [32, 34, 36, 38]]


def test_candidates_lie_closer_within_the_same_span(show):
    assert show(num_frames=6, start_seconds=0.0) == [[0, 2, 4, 6, 8, 10]]


def test_a_spacing_in_seconds(show):
    section = SECTION.model_copy(update={"stride_seconds": 0.25})
    assert show(section=section, start_seconds=0.0, num_clips=2) == [[0, 5, 10, 15], [20, 25, 30, 35]]


def test_a_start_beyond_the_end_or_no_clip_is_one_clear_error(path):
    index = index_video(path)
    for start in (2.0, -1.0):
        with pytest.raises(ValueError, match=r"the video lasts 2\.00 s"):
            plan_excerpts(index, section=SECTION, num_frames=4, num_clips=1, start_seconds=start)
    with pytest.raises(ValueError, match="--clips is at least 1, got 0"):
        plan_excerpts(index, section=SECTION, num_frames=4, num_clips=0, start_seconds=None)
