"""Tensors that do not fit a model are counted, the first of them named, with the likely cause."""

from __future__ import annotations

import pytest

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models.weights.state_dict import NAMED, describe_misfit, load_state_dict_strict

GRID = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 8, 8))
SIZES = dict(grid=GRID, width=24, depth=2, heads=3)


def make_classifier(**changes):
    return VideoClassifier(**SIZES | {"num_classes": 4, "keep_ratio": 0.5} | changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (dict(depth=14), "2 encoder blocks, and 14 here"),
        (dict(width=48), "its tokens are 24 wide, and 48 here"),
        (dict(grid=TokenGrid(4, 32, 48, (2, 16, 16))), "(clip.tubelet): 384 values a patch, and 1536 here"),
        (dict(num_classes=7), "another number of classes: 4, and 7 here"),
    ],
)
def test_many_tensors_are_a_few_lines_with_the_cause(changes, cause):
    with pytest.raises(ValueError) as error:
        load_state_dict_strict(make_classifier(**changes), make_classifier().state_dict())
    text = str(error.value)
    assert cause in text and len(text) < 1000 and len(text.splitlines()) <= 5
    for line in text.splitlines()[1:-1]:
        assert line.count("encoder.") <= NAMED and int(line.split()[1]) >= 1


def test_the_rest_of_the_names_is_a_number():
    lines = describe_misfit({f"a{number}": (1,) for number in range(1234)}, {"b": (1,)})
    assert lines[0] == "1,234 missing: a0, a1, a2 and 1,231 more" and lines[1] == "1 unexpected: b"


def test_another_kind_of_model_is_said():
    autoencoder = MaskedAutoencoder(**SIZES, decoder_width=12, decoder_depth=1, decoder_heads=2)
    with pytest.raises(ValueError, match="weights of pre-training for a classifier"):
        load_state_dict_strict(make_classifier(), autoencoder.state_dict())


def test_what_fits_has_no_cause():
    shapes = {name: tensor.shape for name, tensor in make_classifier().state_dict().items()}
    assert describe_misfit(shapes, shapes) == []
    assert describe_misfit(shapes | {"new.a": (2,)}, shapes, fresh=["new."]) == []
