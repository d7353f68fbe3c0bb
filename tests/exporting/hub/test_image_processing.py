"""The travelling processor gives the pixels that a test of mats_ds gives, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import read_manifest
from mats_ds.data.video.frames import read_frames, video_facts
from mats_ds.exporting.hub.folder import make_hub_preprocessor
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD
from tests.exporting.models import make_classifier, weights
from tests.trained_models import write_manifest, write_videos

pytest.importorskip("transformers")


def make_processor(**changes):
    from mats_ds.exporting.hub.remote_code.image_processing_mats import MatsImageProcessor

    spec = weights(make_classifier()).spec
    tree = make_hub_preprocessor(spec, changes.pop("clip", {"stride": 3}))
    return MatsImageProcessor(**{**tree, **changes})


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return write_videos(folder, num_videos=1)[0]  # 24 frames of 48 x 80


@pytest.mark.parametrize(
    "clip", [{"stride": 3}, {"stride": 1}, {"stride": 9}, {"sampling": "uniform"}, {"stride_seconds": 0.1, "stride": 7}], ids=str
)
def test_pixels_of_a_video_are_those_of_our_test(video, clip, tmp_path):
    path, label = video
    manifest = read_manifest(write_manifest(tmp_path / "one.csv", [(path, label)]))
    section = ClipSection.model_validate({**clip, "num_frames": 6, "height": 32, "width": 48, "tubelet": (2, 8, 8)})
    views = read_views(
        manifest,
        recipe_clip=section,
        num_clips=1,
        num_crops=1,
        num_frames=6,
        micro_batch=1,
        device=torch.device("cpu"),
        num_workers=0,
    )
    (batch,) = list(views)
    facts = video_facts(path)
    whole = read_frames(path, range(facts.num_frames))
    pixels = make_processor(clip=clip)(whole, fps=facts.rate)["pixel_values"]
    assert pixels.shape == (1, 6, 3, 32, 48) and pixels.dtype == torch.float32
    back = (pixels * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255
    frames_BTHWC = batch.clips.frames_BTHWC
    assert torch.equal(back.round().to(torch.uint8).movedim(2, -1), frames_BTHWC)
    ours = (frames_BTHWC / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.equal(pixels.movedim(2, -1), ours)


def test_clips_in_every_form_that_people_have_them():
    from PIL import Image

    clip = np.random.default_rng(1).integers(0, 256, (6, 40, 64, 3), dtype=np.uint8)
    processor = make_processor()
    expected = processor(clip)["pixel_values"]
    forms = [
        list(clip),
        [Image.fromarray(frame) for frame in clip],
        torch.from_numpy(clip),
        clip.transpose(0, 3, 1, 2),
        [clip],
        clip[None],
        [[Image.fromarray(frame) for frame in clip]],
        [torch.from_numpy(frame) for frame in clip],
        np.ascontiguousarray(clip[..., ::-1])[..., ::-1],  # BGR of OpenCV, turned: negative strides
    ]
    for form in forms:
        assert torch.equal(processor(form)["pixel_values"], expected)
    assert torch.equal(processor(videos=[clip, clip])["pixel_values"], torch.cat([expected, expected]))
    assert isinstance(processor(clip, return_tensors="np")["pixel_values"], np.ndarray)


@pytest.mark.parametrize("wrong", [np.zeros((6, 40, 64, 3), np.float32), np.zeros((6, 40, 64, 4), np.uint8)])
def test_what_is_no_8_bit_clip_is_refused(wrong):
    with pytest.raises(ValueError, match=r"uint8 RGB frames \[T, H, W, 3\], got"):
        make_processor()(wrong)


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [
        ([], "empty list"),
        (None, "got NoneType"),
        ([np.zeros((40, 64, 3), np.uint8), np.zeros((20, 64, 3), np.uint8)], r"one size, got \[\(20, 64, 3\), \(40, 64, 3\)\]"),
        (np.zeros((40, 64, 3), np.uint8), r"got \[40, 64, 3\]"),
    ],
    ids=["empty", "none", "sizes", "picture"],
)
def test_what_is_no_clip_is_one_clear_error(wrong, facts):
    with pytest.raises(ValueError, match=facts):
        make_processor()(wrong)


def test_options_of_other_processors_are_not_ignored():
    clip = np.zeros((6, 40, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="do_normalize=False"):
        make_processor()(clip, do_normalize=False)
    with pytest.raises(ValueError, match="do_normalize=False"):
        make_processor(do_normalize=False)
    make_processor()(clip, do_normalize=True, num_frames=6, do_sample_frames=True)


def test_frames_may_be_on_another_device():
    pixels = make_processor()(torch.zeros(6, 40, 64, 3, dtype=torch.uint8, device="meta"))["pixel_values"]
    assert pixels.device.type == "meta" and pixels.shape == (1, 6, 3, 32, 48)


@pytest.mark.parametrize("clip", [{"stride": 3}, {"stride": 9}, {"sampling": "uniform"}, {"stride_seconds": 0.1}], ids=str)
def test_a_path_gives_the_pixels_of_its_frames(video, clip):
    path, _ = video
    facts = video_facts(path)
    processor = make_processor(clip=clip)
    expected = processor(read_frames(path, range(facts.num_frames)), fps=facts.rate)["pixel_values"]
    for given in (str(path), Path(path), [str(path)]):
        assert torch.equal(processor(given)["pixel_values"], expected)


def test_a_clip_in_seconds_needs_the_frame_rate():
    processor = make_processor(clip={"stride_seconds": 0.5})
    with pytest.raises(ValueError, match="24 frames of a video, and a clip of 6 frames lasts 3 s: give fps="):
        processor(np.zeros((24, 40, 64, 3), np.uint8))
    processor(np.zeros((6, 40, 64, 3), np.uint8))


def test_a_path_without_a_video_is_one_clear_error():
    with pytest.raises(ValueError, match="there is no video nowhere.mp4"):
        make_processor()("nowhere.mp4")
