"""The options beyond the paper on an NVIDIA GPU: the CPU's results, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from mats_ds import TokenGrid, VideoClassifier
from mats_ds.models.token_merging import merge_dropped
from mats_ds.models.vit import split_patches
from mats_ds.tokens.motion import score_local_motion
from mats_ds.tokens.run_length import score_runs

pytestmark = pytest.mark.gpu
GRID = TokenGrid(num_frames=8, height=64, width=96, tubelet=(2, 16, 16))  # 4 x 24 = 96 tokens
FRAMES = torch.randint(0, 256, (3, 8, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OPTIONS = [{"compensate_camera": True}, {"strategy": "run_length"}, {"merge_dropped": True}]


def test_scores_agree_with_the_cpu():
    patches = split_patches(FRAMES, GRID)
    here = score_local_motion(patches, GRID)
    torch.testing.assert_close(score_local_motion(patches.cuda(), GRID).cpu(), here, rtol=1e-5, atol=0.1)
    here = score_runs(patches, GRID, threshold=0.3)
    torch.testing.assert_close(score_runs(patches.cuda(), GRID, threshold=0.3).cpu(), here)


def test_merging_gives_the_cpus_bytes_every_time():
    patches = split_patches(FRAMES, GRID)
    feature = torch.randn(3, 96, 40, generator=torch.Generator().manual_seed(1))
    kept = torch.arange(0, 96, 7).expand(3, -1)
    here = merge_dropped(patches, feature, kept)
    for _ in range(5):
        there = merge_dropped(patches.cuda(), feature.cuda(), kept.cuda())
        assert torch.equal(there.patches_BKP.cpu(), here.patches_BKP) and torch.equal(there.size_BK.cpu(), here.size_BK)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_a_bf16_training_step_never_waits_for_the_device(options):
    model = VideoClassifier.from_name("tiny", grid=GRID, num_classes=5, **options).cuda().bfloat16()
    frames, keys = FRAMES.cuda(), torch.tensor([3, 4, 5]).cuda()
    model(frames, keys).square().sum().backward()  # the first call may load kernels
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        model(frames, keys).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
