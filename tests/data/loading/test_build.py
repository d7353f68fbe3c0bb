"""From a recipe's sections to manifest and loader."""

from __future__ import annotations

import torch

from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import DataSection
from mats_ds.data.loading.build import open_loader, open_videos, read_pass
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.view_sampler import ViewSampler


def test_a_test_set_is_read_once_and_again_the_same(tmp_path):
    source = write_synthetic_set(tmp_path / "set", num_videos=5, num_frames=12, height=48, width=80)
    recipe = load_recipe("tiny", ["clip.num_frames=4", "clip.height=32", "clip.width=48"])
    manifest = open_videos(DataSection(manifest=str(source)))
    sampler = ViewSampler(manifest, recipe_clip=recipe.clip, num_clips=1, num_crops=1, micro_batch=2)
    with open_loader(sampler, recipe, rank=0, world_size=1, micro_batch=2, accumulation=1, device=torch.device("cpu")) as loader:
        passes = [[batch.clips for batch in read_pass(loader)] for _ in range(2)]
    assert [len(batches) for batches in passes] == [3, 3]
    assert torch.cat([batch.sample_B for batch in passes[0]]).tolist() == [0, 1, 2, 3, 4, -1]
    for first, second in zip(*passes, strict=True):
        assert first.frames_BTHWC.shape == (2, 4, 32, 48, 3) and first.frames_BTHWC.equal(second.frames_BTHWC)
