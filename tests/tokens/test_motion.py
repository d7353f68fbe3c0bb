"""Motion scores against a loop that follows the method's text word by word."""

from __future__ import annotations

import math

import pytest
import torch

from mats_ds import TokenGrid, score_motion

GRID = TokenGrid(num_frames=6, height=12, width=20, tubelet=(2, 4, 4))  # 3 tubelets of 3 x 5 places


def looped_motion(embedding, grid, distance):
    motion = [[0.0] * grid.num_tokens for _ in embedding]
    for clip, tokens in enumerate(embedding.tolist()):
        for tubelet in range(1, grid.tau):
            for place in range(grid.tokens_per_tubelet):
                now = tokens[tubelet * grid.tokens_per_tubelet + place]
                before = tokens[(tubelet - 1) * grid.tokens_per_tubelet + place]
                motion[clip][tubelet * grid.tokens_per_tubelet + place] = distance(now, before)
        motion[clip][: grid.tokens_per_tubelet] = motion[clip][grid.tokens_per_tubelet : 2 * grid.tokens_per_tubelet]
    return torch.tensor(motion)


def l2(now, before):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(now, before, strict=True)))


def l1(now, before):
    return sum(abs(a - b) for a, b in zip(now, before, strict=True))


def cosine(now, before):
    dot = sum(a * b for a, b in zip(now, before, strict=True))
    return 1 - dot / (math.hypot(*now) * math.hypot(*before))


@pytest.mark.parametrize(("name", "distance"), [("l2", l2), ("l1", l1), ("cosine", cosine)])
def test_scores_equal_the_loop(name, distance):
    embedding = torch.randn(2, GRID.num_tokens, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(score_motion(embedding, GRID, distance=name), looped_motion(embedding, GRID, distance))


def test_the_first_tubelet_takes_the_second_ones_scores():
    motion = score_motion(torch.randn(1, GRID.num_tokens, 4), GRID)
    assert torch.equal(motion[:, :15], motion[:, 15:30])


def test_what_stands_still_scores_zero():
    still = torch.randn(1, 15, 4).repeat(1, 3, 1)
    assert torch.equal(score_motion(still, GRID), torch.zeros(1, 45))


def test_scores_have_no_gradient_and_are_float32():
    motion = score_motion(torch.randn(1, 45, 4, requires_grad=True, dtype=torch.bfloat16), GRID)
    assert motion.dtype == torch.float32 and not motion.requires_grad


def test_wrong_sizes_and_names_are_refused():
    with pytest.raises(ValueError, match="44 tokens but the grid has 45"):
        score_motion(torch.zeros(1, 44, 2), GRID)
    with pytest.raises(ValueError, match="at least two tubelets"):
        score_motion(torch.zeros(1, 15, 2), GRID.with_tau(1))
    with pytest.raises(ValueError, match="choose one of l2, l1, cosine"):
        score_motion(torch.zeros(1, 45, 2), GRID, distance="L3")
