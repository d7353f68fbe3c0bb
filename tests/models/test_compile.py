"""torch.compile on the models: one graph, the same numbers, the same names. Slow: the compiler
takes most of a minute."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.core.token_grid import count_selection
from mats_ds.models.classifier import VideoClassifier

GRID = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))
FRAMES = torch.randint(0, 256, (2, 6, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEYS = torch.tensor([5, 6])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def train_step(model):
    loss = model(FRAMES, KEYS).square().mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def make_pair(kind, **options):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(kind.from_name("tiny", grid=GRID, **options))
    return models


@pytest.mark.parametrize("recompute", ["pointwise", "mlp"])
def test_the_autoencoder_compiles_to_one_graph_with_equal_loss_gradients_and_names(recompute):
    assert count_selection(GRID, strategy="mats", keep_ratio=0.3, visible_ratio=0.1).kept % 8, "odd sizes find tail errors"
    eager, compiled = make_pair(MaskedAutoencoder, recompute=recompute)
    compiled.compile(fullgraph=True, dynamic=False)
    (one, gradients), (other, found) = train_step(eager), train_step(compiled)
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_the_classifier_compiles_to_one_graph():
    eager, compiled = make_pair(VideoClassifier, num_classes=7, recompute="mlp")
    compiled.compile(fullgraph=True, dynamic=False)
    torch.testing.assert_close(train_step(compiled)[0], train_step(eager)[0], rtol=1e-4, atol=1e-7)
