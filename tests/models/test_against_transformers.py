"""Outputs and every gradient of the models are those of transformers' VideoMAE with the same
weights."""

from __future__ import annotations

import pytest
import torch

from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD
from mats_ds.models.weights.hugging_face import ROWS, join_projections
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.state_dict import PATCH_WEIGHT, from_convolution, reverse, translate

transformers = pytest.importorskip("transformers")

GRID = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))  # 3 tubelets of 4 x 6 places
TOLERANCE = 1e-5
SIZES = dict(
    image_size=[32, 48], patch_size=8, num_frames=6, tubelet_size=2, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=192, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
    decoder_intermediate_size=96, layer_norm_eps=1e-6,
)  # fmt: skip


def make_theirs(kind, attention, **options):
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**SIZES, **options)
    config._attn_implementation = attention
    model = getattr(transformers, f"VideoMAEFor{kind}")(config)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        for parameter in model.parameters():  # biases that are zero could hide a mistake
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def random_frames(batch=2):
    shape = (batch, GRID.num_frames, GRID.height, GRID.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalise(frames):
    """What transformers' processor makes of frames: [B, T, C, H, W]."""
    pixels = (frames / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return pixels.movedim(-1, 2)


def gradients_of_theirs(model):
    """Their gradients under our names."""
    gradients = translate(join_projections({name: p.grad for name, p in model.named_parameters()}), reverse(ROWS))
    assert not gradients.unknown
    return gradients.state | {PATCH_WEIGHT: from_convolution(gradients.state[PATCH_WEIGHT])}


def compare_gradients(ours, theirs):
    expected = gradients_of_theirs(theirs)
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        largest = float(expected[name].abs().max())
        assert largest > 0, name
        close = min(TOLERANCE, 1e-3 * largest)  # a small gradient must not pass by being small
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=0, atol=close, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("recompute", ["none", "pointwise", "mlp"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pretraining_has_their_loss_and_gradients(tmp_path, attention, recompute):
    theirs = make_theirs("PreTraining", attention, use_mean_pooling=False).train()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, strategy="tube", visible_ratio=0.2, recompute=recompute).train()
    frames = random_frames()
    chosen = ours.choose(frames, torch.tensor([5, 6]))
    masked = torch.ones(2, GRID.num_tokens, dtype=torch.bool).scatter_(1, chosen.selection.visible_BV, False)
    output = theirs(normalise(frames), bool_masked_pos=masked)
    loss = ours(frames, torch.tensor([5, 6]))
    assert abs(float(loss.detach() - output.loss.detach())) < TOLERANCE
    torch.testing.assert_close(ours.predict(chosen), output.logits, rtol=0, atol=TOLERANCE)
    loss.backward()
    output.loss.backward()
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("recompute", ["none", "pointwise", "mlp"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_classification_of_all_tokens_has_their_logits_and_gradients(tmp_path, attention, recompute):
    theirs = make_theirs("VideoClassification", attention, use_mean_pooling=True, num_labels=7).train()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, recompute=recompute).train()
    assert ours.keep_ratio == 1.0
    frames, labels = random_frames(), torch.tensor([2, 6])
    logits, expected = ours(frames), theirs(normalise(frames)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_the_same_with_videomaes_own_eps(tmp_path, attention):
    """transformers leaves 1e-5 in fc_norm; VideoMAE's models, which its weights come from, have
    1e-6 there too."""
    theirs = make_theirs("VideoClassification", attention, use_mean_pooling=True, num_labels=7).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, last_norm_eps=1e-6)
    theirs.fc_norm.eps = 1e-6
    frames = random_frames()
    torch.testing.assert_close(ours(frames), theirs(normalise(frames)).logits, rtol=0, atol=TOLERANCE)
