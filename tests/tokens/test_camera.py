"""Motion beyond what the whole tubelet does, against a loop that follows the words, and what it is
for."""

from __future__ import annotations

import pytest
import torch

from mats_ds import TokenGrid, score_motion
from mats_ds.tokens.motion import score_local_motion

# 4 tubelets of 3 x 5 places, 60 tokens
GRID = TokenGrid(num_frames=8, height=12, width=20, tubelet=(2, 4, 4))
# 3 tubelets of 2 x 3 places, 18 tokens
EVEN_GRID = TokenGrid(num_frames=6, height=8, width=12, tubelet=(2, 4, 4))


def random_embedding(grid, batch=2, width=7):
    return torch.randn(batch, grid.num_tokens, width, generator=torch.Generator().manual_seed(0))


def lower_median(values):
    return sorted(values)[(len(values) - 1) // 2]


def looped_motion(embedding, grid, distance):
    places = grid.tokens_per_tubelet
    motion = torch.zeros(len(embedding), grid.num_tokens)
    for clip, tokens in enumerate(embedding.tolist()):
        for tubelet in range(1, grid.tau):
            now, before = tokens[tubelet * places :], tokens[(tubelet - 1) * places :]
            change = [[a - b for a, b in zip(now[place], before[place], strict=True)] for place in range(places)]
            common = [lower_median([row[channel] for row in change]) for channel in range(len(tokens[0]))]
            length = [distance([a - b for a, b in zip(row, common, strict=True)]) for row in change]
            usual = lower_median(length)
            for place in range(places):
                motion[clip, tubelet * places + place] = length[place] - usual
        motion[clip, :places] = motion[clip, places : 2 * places]
    return motion


DISTANCES = {"l2": lambda row: sum(value**2 for value in row) ** 0.5, "l1": lambda row: sum(map(abs, row))}


@pytest.mark.parametrize("grid", [GRID, EVEN_GRID], ids=["odd", "even"])
@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_scores_equal_the_loop(distance, grid):
    embedding = random_embedding(grid)
    expected = looped_motion(embedding, grid, DISTANCES[distance])
    torch.testing.assert_close(score_local_motion(embedding, grid, distance=distance), expected)


def test_motion_common_to_all_tokens_is_subtracted():
    embedding = random_embedding(GRID)
    shared = torch.randn(2, 4, 1, 7, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 15, -1).flatten(1, 2)
    torch.testing.assert_close(score_local_motion(embedding + shared, GRID), score_local_motion(embedding, GRID))
    assert (score_motion(embedding + shared, GRID) - score_motion(embedding, GRID)).abs().max() > 1


def test_a_shaken_tubelet_does_not_outrank_a_thing_that_moves():
    embedding = torch.zeros(1, 60, 7)
    embedding[0, 30 + 4 :: 15] += 1.5  # place 4 changes between tubelets 1 and 2
    own_ways = torch.nn.functional.normalize(random_embedding(GRID)[0, :15], dim=-1)
    shaken = embedding.clone()
    # in the last tubelet every place changes in its own way, by the same amount
    shaken[0, 45:] += 5 * own_ways
    assert int(score_motion(shaken, GRID).argmax()) >= 45
    assert int(score_local_motion(shaken, GRID).argmax()) == 34


def test_what_stands_still_scores_zero():
    still = random_embedding(GRID)[:, :15].repeat(1, 4, 1)
    assert torch.equal(score_local_motion(still, GRID), torch.zeros(2, 60))


def test_scores_have_no_gradient_and_are_float32():
    motion = score_local_motion(random_embedding(GRID).bfloat16().requires_grad_(), GRID)
    assert motion.dtype == torch.float32 and not motion.requires_grad


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="59 tokens but the grid has 60"):
        score_local_motion(torch.zeros(1, 59, 2), GRID)
    with pytest.raises(ValueError, match="at least two tubelets"):
        score_local_motion(torch.zeros(1, 15, 2), GRID.with_tau(1))
    with pytest.raises(ValueError, match="'cosine' .* choose l2 or l1"):
        score_local_motion(torch.zeros(1, 60, 2), GRID, distance="cosine")
