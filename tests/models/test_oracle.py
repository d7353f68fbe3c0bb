"""The tokens that the models keep, by their own path, are those that the authors' code keeps on the
same embeddings.

Two rules of ours where theirs has none: on clips of other than 8 tubelets every tubelet is compared
with the one before it (theirs is written for 8), and among equal scores the earlier token is kept
(theirs leaves it to an unstable sort).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"
TAGS = ("randn_8x196x32", "randn_8x16x8", "exact_int_8x196x4", "demo_vits_seed1", "static_clip")
SIZES = dict(width=12, depth=1, heads=3)
DECODER = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)


def kept_by_autoencoder(grid, embedding):
    model = MaskedAutoencoder(grid=grid, **SIZES, **DECODER, keep_ratio=0.3, visible_ratio=0.1)
    model.motion_feature = lambda patches_BNP: embedding
    chosen = model.choose(blank_frames(grid, len(embedding)))
    index = torch.cat([chosen.selection.visible_BV, chosen.selection.target_BM], dim=1).sort(dim=1).values
    return chosen.motion_BN, index


def kept_by_classifier(grid, embedding):
    model = VideoClassifier(grid=grid, num_classes=2, **SIZES).eval()
    model.motion_feature = lambda patches_BNP: embedding
    frames = blank_frames(grid, len(embedding))
    return model.choose(frames).motion_BN, model.encode(frames).index_BK


def blank_frames(grid, batch):
    return torch.zeros(batch, grid.num_frames, grid.height, grid.width, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    "keep, recorded_key, tied_key",
    [(kept_by_autoencoder, "pre_keep", "cut_tied_K_pre"), (kept_by_classifier, "ft_keep", "cut_tied_K_ft")],
)
@pytest.mark.parametrize("tag", TAGS)
def test_the_models_keep_what_the_authors_code_keeps(tag, keep, recorded_key, tied_key):
    if not (ORACLE / f"{tag}.json").exists():
        pytest.skip("the recorded picks of the authors' code are not here")
    recorded = json.loads((ORACLE / f"{tag}.json").read_text())
    embedding = torch.load(ORACLE / f"{tag}.pt", weights_only=True)
    grid = TokenGrid(2 * recorded["T"], 4, recorded["L"], (2, 4, 1))
    motion, index = keep(grid, embedding)
    for clip, theirs in enumerate(recorded[recorded_key]):
        assert index.shape[1] == len(theirs)
        if recorded[tied_key][clip]:  # the cut falls between equal scores: the same scores are kept
            scores = motion[clip][index[clip]], motion[clip][torch.tensor(theirs)]
            assert torch.equal(*(score.sort().values for score in scores))
        else:
            assert index[clip].tolist() == theirs


@pytest.mark.parametrize("tau", [2, 3, 5, 9])
def test_on_any_number_of_tubelets_the_earlier_of_equal_scores_is_kept(tau):
    grid = TokenGrid(2 * tau, 4, 10, (2, 4, 1))
    embedding = torch.randint(0, 3, (2, grid.num_tokens, 1), generator=torch.Generator().manual_seed(tau)).float()
    for keep, share in ((kept_by_autoencoder, 3), (kept_by_classifier, 6)):
        _, index = keep(grid, embedding)
        for clip in range(2):
            steps = embedding[clip, :, 0].view(tau, 10).tolist()
            scores = [[abs(a - b) for a, b in zip(later, earlier, strict=True)] for earlier, later in zip(steps, steps[1:])]  # noqa: B905
            flat = [score for row in (scores[0], *scores) for score in row]
            ranked = sorted(range(len(flat)), key=lambda token, flat=flat: (-flat[token], token))
            assert index[clip].tolist() == sorted(ranked[: share * tau])
