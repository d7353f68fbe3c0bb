"""What a forward pass keeps for backward, counted on the pass itself."""

import torch
from torch import nn

from mats_ds.planning.tensor_bytes import SavedBytes


def test_counts_one_training_pass_and_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    frames = torch.randn(5, 8)
    saved = SavedBytes(model)
    with torch.no_grad():
        model(frames)  # nothing is kept: not this one
    assert saved.num_bytes is None
    model(frames).sum().backward()
    assert saved.num_bytes == 2 * 5 * 16 * 4  # before and after GELU; neither weights nor the input
    model(torch.randn(50, 8)).sum().backward()
    assert saved.num_bytes == 2 * 5 * 16 * 4
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_pass_that_fails_leaves_no_hook_of_autograd_behind():
    class Failing(nn.Module):
        def forward(self, value):
            raise RuntimeError("no")

    model = Failing()
    SavedBytes(model)
    for _ in range(2):
        try:
            model(torch.zeros(1))
        except RuntimeError as error:
            assert str(error) == "no"
    weight = torch.ones(1, requires_grad=True)
    (weight * weight).backward()
    assert weight.grad == 2
