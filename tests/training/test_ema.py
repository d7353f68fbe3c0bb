"""The average of the weights, in float32 beside weights of any type."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mats_ds.training.ema import WeightAverage


def make_average(decay=0.75, dtype=torch.float32):
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, decay=decay, device=torch.device("cpu"))
    return average, model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_follows_the_weights_by_its_decay(dtype):
    average, model = make_average(dtype=dtype)
    nn.init.constant_(model.weight, 3.0)
    average.on_step(None)
    assert average.model.weight.unique().tolist() == [1.5]
    average.on_step(None)
    assert average.model.weight.unique().tolist() == [1.875]
    assert average.model.weight.dtype == torch.float32 and not average.model.training


def test_it_goes_on_from_what_a_checkpoint_kept():
    average, model = make_average()
    nn.init.constant_(model.weight, 3.0)
    average.on_step(None)
    other, _ = make_average()
    other.load(average.state())
    assert other.model.weight.equal(average.model.weight)
    with pytest.raises(ValueError, match="holds no average"):
        other.load({"step": 3})


def test_parts_of_weights_cannot_be_averaged():
    average, _ = make_average()
    with pytest.raises(ValueError, match="use stage 2"):
        average.on_start(SimpleNamespace(zero_stage=3))
