"""Dropped tokens merged into kept ones, against loops; and the options beyond the paper, on their
way from recipe to model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier, select_tokens, step_flops
from mats_ds.config.recipe import Recipe
from mats_ds.core.token_grid import RUN_THRESHOLD
from mats_ds.models.model_spec import build_model, describe_model, dump_spec, parse_spec
from mats_ds.models.token_merging import list_dropped, merge_dropped, pool_by_size
from mats_ds.models.vit import split_patches
from mats_ds.tokens.motion import score_local_motion
from mats_ds.tokens.run_length import score_runs

# 3 tubelets of 4 x 5 places, 60 tokens of 192 values
GRID = TokenGrid(num_frames=6, height=16, width=40, tubelet=(2, 4, 8))
SIZES = dict(width=12, depth=2, heads=3)
KEYS = torch.tensor([5, 6])


def random_frames(batch=2, grid=GRID, seed=0):
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_classifier(**options):
    torch.manual_seed(0)
    return VideoClassifier(grid=GRID, **SIZES, num_classes=7, head_init_scale=1.0, **options)


def make_autoencoder(**options):
    torch.manual_seed(0)
    return MaskedAutoencoder(grid=GRID, **SIZES, decoder_width=8, decoder_depth=1, decoder_heads=2, **options)


def looped_merge(patches, feature, kept):
    """Pixels and sizes, one clip and one token after the other."""
    means, sizes = [], []
    for clip in range(len(patches)):
        groups = {token: [token] for token in kept[clip].tolist()}
        for token in range(patches.shape[1]):
            if token not in groups:
                distances = {keeper: float((feature[clip, token] - feature[clip, keeper]).norm()) for keeper in groups}
                nearest = min(distances, key=lambda keeper: (distances[keeper], keeper))
                groups[nearest].append(token)
        means.append(torch.stack([patches[clip, group].double().mean(dim=0) for group in groups.values()]))
        sizes.append(torch.tensor([float(len(group)) for group in groups.values()]))
    return torch.stack(means), torch.stack(sizes)


def test_merging_equals_the_loop():
    patches = split_patches(random_frames(), GRID)
    feature = torch.randn(2, 60, 11, generator=torch.Generator().manual_seed(1))
    kept = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:13].sort().values for seed in (2, 3)])
    merged = merge_dropped(patches, feature, kept)
    means, sizes = looped_merge(patches, feature, kept)
    assert torch.equal(merged.size_BK, sizes) and merged.size_BK.sum() == 120 and sizes.max() > 3
    assert merged.patches_BKP.dtype == torch.uint8
    torch.testing.assert_close(merged.patches_BKP.double(), means, atol=0.5 + 1e-6, rtol=0)


def test_what_is_dropped_is_what_is_not_kept():
    kept = torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert list_dropped(kept, 6).tolist() == [[1, 3, 4], [0, 2, 5]]


def test_equal_tokens_merge_into_the_first_and_repeats_change_no_pixel():
    place = torch.arange(1, 5)
    # 4 places stand still for 3 tubelets
    patches = place.repeat(3).view(1, 12, 1).expand(-1, -1, 6).to(torch.uint8)
    kept = torch.tensor([[0, 1, 2, 3, 5]])  # place 1 is kept twice
    merged = merge_dropped(patches, patches.float(), kept)
    assert torch.equal(merged.patches_BKP, patches.gather(1, kept[..., None].expand(-1, -1, 6)))
    assert merged.size_BK.tolist() == [[3, 2, 3, 3, 1]]


def test_the_embedding_of_merged_pixels_is_the_mean_of_the_embeddings():
    model, patches = make_classifier(), split_patches(random_frames(), GRID)
    embedding = model.patch_embed(patches).detach()
    kept = torch.arange(0, 60, 3).expand(2, -1)
    merged = merge_dropped(patches, embedding, kept)
    squares = (embedding[:, :, None] - embedding[:, kept[0]][:, None]).square().sum(dim=-1)
    owner = squares.argmin(dim=-1)  # a kept token is nearest to itself
    for clip in range(2):
        for slot in range(20):
            mean = embedding[clip, owner[clip] == slot].mean(dim=0)
            torch.testing.assert_close(model.patch_embed(merged.patches_BKP)[clip, slot], mean, atol=0.02, rtol=0)
    assert embedding.std() > 0.2, "far above the rounding of pixels"


def test_the_classifier_encodes_merged_tokens_instead_of_the_kept_ones_and_pools_by_size():
    model, frames = make_classifier(merge_dropped=True, keep_ratio=0.4).eval(), random_frames()
    patches = split_patches(frames, GRID)
    plain = make_classifier(keep_ratio=0.4).eval()
    kept = plain.encode(frames).index_BK
    merged = merge_dropped(patches, model.patch_embed(patches), kept)
    tokens = model.encoder(model.patch_embed(merged.patches_BKP) + model.positions_ND[kept])
    encoded = model.encode(frames)
    assert torch.equal(encoded.index_BK, kept) and torch.equal(encoded.size_BK, merged.size_BK)
    torch.testing.assert_close(encoded.tokens_BKD, tokens)
    pooled = torch.stack([(tokens[clip] * merged.size_BK[clip, :, None]).sum(dim=0) / 60 for clip in range(2)])
    torch.testing.assert_close(model.features(frames), model.fc_norm(pooled))
    torch.testing.assert_close(pool_by_size(tokens, torch.ones(2, 24)), tokens.mean(dim=1))
    assert not torch.allclose(model(frames), plain(frames))


@pytest.mark.parametrize("strategy", ["mats", "random_drop", "tube", "run_length"])
def test_merging_trains_after_every_strategy(strategy):
    model = make_classifier(merge_dropped=True, strategy=strategy, keep_ratio=0.5).train()
    assert model.encode(random_frames(), KEYS).size_BK.sum(dim=1).tolist() == [60, 60]
    model(random_frames(), KEYS).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_merging_joins_the_tokens_of_the_frames_that_are_used():
    candidates = GRID.with_tau(5)
    model = make_classifier(merge_dropped=True, keep_ratio=0.4, candidate_grid=candidates).eval()
    frames = random_frames(grid=candidates)
    encoded, chosen = model.encode(frames), model.choose(frames)
    merged = merge_dropped(chosen.patches_BNP, model.patch_embed(chosen.patches_BNP), encoded.index_BK)
    assert torch.equal(chosen.merged.patches_BKP, merged.patches_BKP) and torch.equal(encoded.size_BK, merged.size_BK)


@pytest.mark.parametrize("recompute", ["pointwise", "mlp"])
def test_recomputing_changes_no_gradient(recompute):
    gradients = []
    for options in ({}, {"recompute": recompute}):
        model = make_classifier(merge_dropped=True, **options).train()
        gradients.append(torch.autograd.grad(model(random_frames()).square().sum(), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_weights_give_nearly_the_float32_logits():
    frames = random_frames()
    models = [
        make_classifier(merge_dropped=True, strategy="random_drop").eval().to(dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    exact, close = (model(frames).detach() for model in models)
    assert close.dtype == torch.bfloat16
    torch.testing.assert_close(close.float(), exact, rtol=0.1, atol=0.03)


def test_where_nothing_is_dropped_nothing_is_merged_or_scored():
    model = make_classifier(merge_dropped=True, keep_ratio=1.0).eval()
    model.motion_feature = lambda patches: pytest.fail("scored")
    assert torch.equal(model(random_frames()), make_classifier(keep_ratio=1.0).eval()(random_frames()))


@pytest.mark.parametrize("feature", ["embedding", "pixels"])
def test_a_model_that_compensates_ranks_by_the_compensated_score(feature):
    model, frames = make_autoencoder(compensate_camera=True, feature=feature), random_frames()
    motion = score_local_motion(model.motion_feature(split_patches(frames, GRID)), GRID)
    chosen = model.choose(frames, KEYS)
    assert torch.equal(chosen.motion_BN, motion)
    assert torch.equal(chosen.selection.visible_BV, select_tokens(motion, seed_B=KEYS).visible_BV)
    assert not torch.equal(chosen.motion_BN, make_autoencoder(feature=feature).choose(frames, KEYS).motion_BN)


def test_a_model_that_keeps_by_runs_ranks_the_pixels_of_the_frames_used_and_embeds_no_clip_for_it():
    model, frames = make_autoencoder(strategy="run_length", run_threshold=0.3), random_frames()
    embed, model.motion_feature = model.motion_feature, lambda patches: pytest.fail("embedded")
    score = score_runs(split_patches(frames, GRID), GRID, threshold=0.3)
    assert torch.equal(model.choose(frames, KEYS).motion_BN, score)
    model(frames, KEYS).backward()
    candidates = GRID.with_tau(5)
    model.candidate_grid, model.motion_feature = candidates, embed
    chosen = model.choose(random_frames(grid=candidates), KEYS)
    assert torch.equal(chosen.motion_BN, score_runs(chosen.patches_BNP, GRID, threshold=0.3))


def test_the_options_are_off_by_default_and_what_is_off_changes_no_bit():
    off = {"compensate_camera": False, "run_threshold": 0.5}
    one, other = (make_autoencoder(**options)(random_frames(), KEYS) for options in ({}, off))
    assert torch.equal(one, other)
    one, other = (make_classifier(**options)(random_frames(), KEYS) for options in ({}, {**off, "merge_dropped": False}))
    assert torch.equal(one, other)


def small_recipe(**selection):
    clip = {"num_frames": 4, "height": 32, "width": 48, "tubelet": (2, 8, 8)}
    return Recipe.model_validate({"model": {"name": "tiny"}, "clip": clip, "selection": selection})


def test_a_recipe_carries_the_options_to_the_autoencoder():
    model = MaskedAutoencoder.from_recipe(small_recipe(compensate_camera=True))
    assert model.pruning.compensate_camera and model.pruning.run_threshold == RUN_THRESHOLD
    model = MaskedAutoencoder.from_recipe(small_recipe(strategy="run_length", run_threshold=0.05))
    assert (model.pruning.strategy, model.pruning.run_threshold) == ("run_length", 0.05)


def test_a_recipe_or_model_whose_options_exclude_each_other_is_refused():
    with pytest.raises(ValueError, match="choose l2 or l1"):
        small_recipe(compensate_camera=True, distance="cosine")
    with pytest.raises(ValueError, match="run_length has its own"):
        small_recipe(compensate_camera=True, strategy="run_length")
    with pytest.raises(ValueError, match="must be below keep_ratio"):
        small_recipe(strategy="run_length", visible_ratio=0.3)
    with pytest.raises(ValueError, match="merge_dropped is for fine-tuning"):
        MaskedAutoencoder.from_recipe(small_recipe(merge_dropped=True))
    for make in (make_autoencoder, make_classifier):
        with pytest.raises(ValueError, match="choose l2 or l1"):
            make(compensate_camera=True, distance="cosine")


def test_a_file_of_weights_holds_the_options_of_the_method():
    model = make_classifier(compensate_camera=True, run_threshold=0.07, merge_dropped=True)
    spec = parse_spec(dump_spec(describe_model(model)))
    again = build_model(spec)
    assert (again.pruning.compensate_camera, again.pruning.run_threshold, again.pruning.merge_dropped) == (True, 0.07, True)
    older = {name: value for name, value in dump_spec(spec).items() if name not in ("compensate_camera", "merge_dropped")}
    assert not build_model(parse_spec(older)).pruning.merge_dropped, "files of before these options keep their meaning"
    autoencoder = build_model(parse_spec(dump_spec(describe_model(make_autoencoder(compensate_camera=True)))))
    assert autoencoder.pruning.compensate_camera


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this torch does not count attention on a CPU",
)
@pytest.mark.parametrize("feature", ["embedding", "pixels"])
@pytest.mark.parametrize("strategy", ["mats", "run_length"])
@pytest.mark.parametrize("merge", [False, True])
def test_flops_equal_what_torch_counts(strategy, merge, feature):
    grid = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 8, 8))
    how = {"strategy": strategy, "feature": feature, "merge_dropped": merge}
    model = VideoClassifier.from_name("tiny", grid=grid, num_classes=5, keep_ratio=0.6, recompute="none", **how)
    counter = FlopCounterMode(display=False)
    with counter:
        model(random_frames(3, grid)).sum().backward()
    expected = step_flops("tiny", grid, 0.6, task="finetune", num_classes=5, **how)
    assert counter.get_total_flops() == 3 * expected.hardware_flops


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "make", [lambda: make_classifier(merge_dropped=True, compensate_camera=True), lambda: make_autoencoder(strategy="run_length")]
)
def test_the_options_compile_to_one_graph_with_equal_results(make):
    eager, compiled = make(), make()
    compiled.compile(fullgraph=True, dynamic=False)
    one, other = (model(random_frames(), KEYS).square().mean() for model in (eager, compiled))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    one.backward()
    other.backward()
    for (name, parameter), (_, found) in zip(eager.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(
            found.grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
