"""The classifier: which tokens it encodes, what it makes of them, and how it starts."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models.vit import split_patches

# 3 tubelets of 4 x 5 places, 60 tokens
GRID = TokenGrid(num_frames=6, height=16, width=40, tubelet=(2, 4, 8))
SIZES = dict(width=12, depth=2, heads=3)


def make_model(**options):
    torch.manual_seed(0)
    model = VideoClassifier(grid=GRID, **SIZES, **{"num_classes": 7, "head_init_scale": 1.0, **options})
    with torch.no_grad():  # biases that are zero could hide a mistake
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def random_frames(batch=2, grid=GRID, seed=0):
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_kept_tokens_are_encoded_with_their_positions_averaged_and_then_normalised():
    model, frames = make_model(), random_frames()
    encoded = model.encode(frames)
    embedding = model.patch_embed(split_patches(frames, GRID))
    for clip in range(2):
        index = encoded.index_BK[clip]
        assert len(index) == 36
        tokens = (embedding[clip] + model.positions_ND)[index][None]
        for block in model.encoder.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(encoded.tokens_BKD[clip], tokens[0])
        mean = tokens[0].mean(dim=0)
        normed = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-6).sqrt()
        feature = normed * model.fc_norm.weight + model.fc_norm.bias
        torch.testing.assert_close(model.features(frames)[clip], feature)
        torch.testing.assert_close(model(frames)[clip], feature @ model.class_head.weight.T + model.class_head.bias)


def test_it_keeps_the_moving_tokens():
    frames = torch.full_like(random_frames(), 60)
    frames[0, 2:, 4:8, 8:24] = 200  # one change, between tubelets 0 and 1: places 6 and 7
    index = make_model(keep_ratio=0.1).encode(frames).index_BK[0]
    assert {6, 7, 26, 27} <= set(index.tolist())  # tubelet 0 repeats the scores of tubelet 1


def test_the_control_drops_as_many_at_random_by_seed():
    model, frames = make_model(strategy="random_drop"), random_frames()
    one, two = (model.encode(frames, torch.tensor(seeds)).index_BK for seeds in ([1, 2], [1, 3]))
    assert one.shape == (2, 36)
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])
    # in evaluation, one fixed seed
    assert torch.equal(model.encode(frames).index_BK, model.encode(frames).index_BK)
    model.train()
    assert not torch.equal(model.encode(frames).index_BK, model.encode(frames).index_BK)


def test_keeping_all_scores_nothing():
    model, frames = make_model(keep_ratio=1.0), random_frames()
    model.motion_feature = lambda patches: pytest.fail("scored")
    assert model.encode(frames).index_BK.tolist() == [list(range(60))] * 2


def test_frames_are_sampled_in_training_and_the_fullest_in_evaluation():
    candidates = GRID.with_tau(6)
    model, frames = make_model(candidate_grid=candidates, keep_ratio=0.2), random_frames(grid=candidates)
    frames[:, :] = frames[:, :1]
    # tubelet 4 differs, so 4 and 5 hold all motion
    frames[:, 8:10] = random_frames(grid=candidates, seed=5)[:, 8:10]
    seeds = [torch.tensor([seed, seed + 1]) for seed in range(0, 16, 2)]
    assert {tuple(row) for seed in seeds for row in model.encode(frames, seed).tubelets_BT.tolist()} == {(0, 4, 5)}
    model.train()
    drawn = {tuple(row) for seed in seeds for row in model.encode(frames, seed).tubelets_BT.tolist()}
    assert len(drawn) > 1 and all({4, 5} <= set(row) for row in drawn)


def test_gradient_reaches_every_parameter_but_not_through_the_scores():
    model = make_model().train()
    model(random_frames()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_a_clip_does_not_depend_on_its_neighbours():
    model, frames = make_model(), random_frames()
    torch.testing.assert_close(model(frames)[1:], model(frames[1:]))


@pytest.mark.parametrize("options", [{"checkpoint_blocks": "all"}, {"checkpoint_blocks": 2}, {"recompute": "mlp"}])
def test_recomputing_changes_no_gradient(options):
    gradients = []
    for extra in ({}, options):
        model = make_model(**extra).train()
        loss = model(random_frames()).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_names_of_the_shared_parts_are_those_of_pretraining():
    autoencoder = MaskedAutoencoder(grid=GRID, **SIZES, decoder_width=8, decoder_depth=1, decoder_heads=2)
    shared = {name for name in autoencoder.state_dict() if name.startswith(("patch_embed.", "encoder.blocks."))}
    own = set(make_model().state_dict())
    assert shared < own
    assert own - shared == {"fc_norm.weight", "fc_norm.bias", "class_head.weight", "class_head.bias"}


def test_a_fresh_head_starts_near_zero_and_dropout_and_drop_path_are_options():
    torch.manual_seed(0)
    fresh = VideoClassifier.from_name("tiny", grid=GRID, num_classes=400, head_dropout=0.5, drop_path=0.3)
    assert float(fresh.class_head.weight.detach().std()) == pytest.approx(0.02 * 0.001, rel=0.05)
    assert fresh.class_head.bias.abs().max() == 0 and fresh.encoder.blocks[0].mlp.fc1.bias.abs().max() == 0
    qkv = fresh.encoder.blocks[0].attn.qkv.weight.detach()
    # as pre-training begins
    assert float(qkv.std()) == pytest.approx((2 / sum(qkv.shape)) ** 0.5, rel=0.05)
    frames = random_frames()
    assert not torch.equal(fresh(frames), fresh(frames))
    assert torch.equal(fresh.eval()(frames), fresh(frames))


def test_bf16_weights_give_nearly_the_float32_logits():
    model, frames = make_model(keep_ratio=1.0), random_frames()
    exact = model(frames).detach()
    close = model.to(torch.bfloat16)(frames).detach().float()
    torch.testing.assert_close(close, exact, rtol=0.1, atol=0.03)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"num_classes": 0}, "num_classes is at least 1"),
        ({"class_names": ("a", "b")}, "2 class names for 7 classes"),
        ({"keep_ratio": 0.0}, "above 0 and at most 1"),
        ({"feature": "flow"}, "embedding, pixels"),
        ({"keep_ratio": 1.0, "candidate_grid": GRID.with_tau(5)}, "lower keep_ratio"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        make_model(**options)


def test_another_keep_ratio_shares_the_weights_and_leaves_the_model_alone():
    model, frames = make_model(keep_ratio=1.0).eval(), random_frames()
    fewer = model.with_keep_ratio(0.5)
    assert (model.keep_ratio, fewer.keep_ratio) == (1.0, 0.5)
    assert fewer.encode(frames).index_BK.shape[1] == model.encode(frames).index_BK.shape[1] // 2
    assert all(one is other for one, other in zip(model.parameters(), fewer.parameters(), strict=True))
    for keep_ratio, fault in ((1.5, r"at most 1, got 1\.5"), (1e-3, r"0\.001 of \d+ tokens is no token")):
        with pytest.raises(ValueError, match=fault):
            model.with_keep_ratio(keep_ratio)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="choose one of tiny, small, base, large, huge"):
        VideoClassifier.from_name("bse", num_classes=3)


@pytest.mark.parametrize("width", [24, 192])
def test_a_run_from_scratch_begins_with_weights_that_fit_the_width(width):
    torch.manual_seed(0)
    model = VideoClassifier(grid=TokenGrid(4, 16, 24, (2, 4, 4)), width=width, depth=1, heads=2, num_classes=3)
    for layer in (model.encoder.blocks[0].mlp.fc1, model.encoder.blocks[0].attn.proj):
        fan = sum(layer.weight.shape)
        assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)  # Xavier's
    assert model.class_head.weight.std().item() < 1e-4  # all classes alike at first
