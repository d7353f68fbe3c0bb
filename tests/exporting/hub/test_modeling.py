"""The models that travel with exported weights: features and logits of our own models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mats_ds.exporting.hub.folder import make_hub_config
from mats_ds.exporting.network import describe_network, open_network
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD
from mats_ds.models.weights.hugging_face import rename_tensors
from mats_ds.models.weights.load import load_encoder, load_model
from tests.exporting.models import CANDIDATES, OPTIONS, make_autoencoder, make_classifier, make_clips, weights

transformers = pytest.importorskip("transformers")
# rounding of float32 in another order of products; outputs are of size 1 to 5
RTOL, ATOL = 1e-5, 5e-5


def normalise(clips):
    return ((clips / 255.0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).movedim(-1, 2)


def build(source, auto, *, keep_ratio=None):
    """A class of the travelling code with the weights of `source`."""
    from mats_ds.exporting.hub.remote_code import modeling_mats

    network = describe_network(open_network(source, keep_ratio=keep_ratio), source.spec)
    config = make_hub_config(source.spec, network, has_norm=source.spec.kind == "pretrain")
    del config["auto_map"]
    model = getattr(modeling_mats, auto)(transformers.VideoMAEConfig(**config)).eval()
    names = (
        {"q_bias": "query.bias", "v_bias": "value.bias"}
        if "layer.0.attention.attention.query.bias" in str(model.state_dict().keys())
        else {}
    )
    tensors = {}
    for name, tensor in rename_tensors(source).items():
        for old, new in names.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    own = model.state_dict()
    assert own.keys() <= tensors.keys()
    model.load_state_dict({name: tensors[name] for name in own})
    return model


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_logits_and_features_of_a_classifier(name):
    source = weights(make_classifier(**OPTIONS[name]))
    ours = load_model(source)
    clips = make_clips(ours.candidate_grid.num_frames)
    expected, encoder = ours(clips), load_encoder(source)
    tokens = encoder.tokens(clips)
    for pixels in (normalise(clips), clips.movedim(-1, 2)):  # floats of the processor, or bytes as they are
        output = build(source, "MatsForVideoClassification")(pixels, labels=torch.tensor([0, 1, 2]))
        torch.testing.assert_close(output.logits, expected, rtol=RTOL, atol=ATOL)
        assert torch.equal(output.token_index, ours.choose(clips).selection.visible_BV)
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2])))
        output = build(source, "MatsModel")(pixels)
        torch.testing.assert_close(output.pooler_output, tokens.features_BD, rtol=RTOL, atol=ATOL)
        torch.testing.assert_close(output.last_hidden_state, tokens.tokens_BKD, rtol=RTOL, atol=ATOL)
        assert torch.equal(output.tubelet_index, tokens.tubelets_BT)


@pytest.mark.parametrize(
    ("strategy", "given", "kept"), [("mats", None, 0.3), ("tube", None, 1.0), ("tube", 0.5, 0.5), ("mats", 1.0, 1.0)]
)
@torch.no_grad()
def test_features_of_pre_trained_weights_are_those_of_extract(strategy, given, kept):
    source = weights(make_autoencoder(strategy=strategy, keep_ratio=0.3))
    clips = make_clips(6)
    expected = load_encoder(source, keep_ratio=kept, visible_ratio=kept)(clips)
    model = build(source, "MatsModel", keep_ratio=given)
    assert model.config.keep_ratio == kept
    torch.testing.assert_close(model(normalise(clips)).pooler_output, expected, rtol=RTOL, atol=ATOL)


@torch.no_grad()
def test_another_fraction_by_the_config():
    source = weights(make_classifier())
    model = build(source, "MatsForVideoClassification")
    model.config.keep_ratio = 0.75
    clips = make_clips(6)
    expected = load_model(source, keep_ratio=0.75, visible_ratio=0.75)(clips)
    torch.testing.assert_close(model(normalise(clips)).logits, expected, rtol=RTOL, atol=ATOL)


@torch.no_grad()
def test_tuples_on_demand_and_a_wrong_shape_named():
    model = build(weights(make_classifier()), "MatsModel")
    assert isinstance(model(normalise(make_clips(6)), return_dict=False), tuple)
    with pytest.raises(ValueError, match=r"\[B, 6, 3, 32, 48\], got \[3, 8, 3, 32, 48\]"):
        model(normalise(make_clips(8)))


@pytest.mark.parametrize(
    ("pixels", "facts"),
    [
        (torch.zeros(0, 6, 3, 32, 48), r"got \[0, 6, 3, 32, 48\]"),
        (torch.zeros(1, 6, 3, 32, 48, dtype=torch.int64), "torch.int64"),
        (np.zeros((1, 6, 3, 32, 48), np.uint8), r"a tensor \[B, 6, 3, 32, 48\], got ndarray"),
        (None, "got NoneType"),
    ],
    ids=["empty", "integers", "array", "none"],
)
def test_what_is_no_batch_of_pixels_is_one_clear_error(pixels, facts):
    with pytest.raises(ValueError, match=facts):
        build(weights(make_classifier()), "MatsModel")(pixels)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_a_fraction_that_cannot_be_is_refused(ratio):
    model = build(weights(make_classifier()), "MatsModel")
    model.config.keep_ratio = ratio
    with pytest.raises(ValueError, match=f"at most 1, got {ratio:g}"):
        model(normalise(make_clips(6)))


def test_frames_are_not_selected_where_every_token_is_kept():
    """All tubelets would count the same, and the first ones be taken without a word."""
    model = build(weights(make_classifier(candidate_grid=CANDIDATES)), "MatsModel")
    model.config.keep_ratio = 1.0
    with pytest.raises(ValueError, match="5 tubelets are read and the 3"):
        model(normalise(make_clips(10)))


@torch.no_grad()
def test_hidden_states_are_those_of_videomae_where_all_tokens_are_kept():
    source = weights(make_classifier())
    model = build(source, "MatsForVideoClassification")
    model.config.keep_ratio = 1.0
    pixels = normalise(make_clips(6))
    states = model(pixels, output_hidden_states=True).hidden_states
    expected = model.videomae(pixels, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 1 + source.spec.depth
    for state, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=RTOL, atol=ATOL)
    encoder = build(source, "MatsModel")
    assert encoder(pixels).hidden_states is None
    assert [state.shape for state in encoder(pixels, output_hidden_states=True).hidden_states] == [(3, 28, 24)] * 3
    with pytest.raises(ValueError, match="output_attentions"):
        encoder(pixels, output_attentions=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_reads_floats_of_both_types_and_bytes(dtype):
    """Normalised pixels are recovered to the bit from 8 bits of mantissa: the same tokens."""
    source = weights(make_classifier())
    model = build(source, "MatsForVideoClassification").to(dtype)
    clips = make_clips(6)
    outputs = [model(pixels) for pixels in (normalise(clips), normalise(clips).to(dtype), clips.movedim(-1, 2))]
    for output in outputs:
        assert output.logits.dtype == dtype and output.logits.isfinite().all()
        assert torch.equal(output.token_index, outputs[0].token_index)
        torch.testing.assert_close(output.logits.float(), load_model(source)(clips), rtol=0.1, atol=0.3)


def test_gradients_reach_all_parameters():
    model = build(weights(make_classifier()), "MatsForVideoClassification").train()
    model(normalise(make_clips(6)), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
