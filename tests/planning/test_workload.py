"""Parameters and tokens of a workload against the real modules."""

import pytest

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.config.load import load_recipe
from mats_ds.core.token_grid import TokenPruning
from mats_ds.models.classifier import VideoClassifier
from mats_ds.planning.workload import Workload

GRID = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))  # 3 x 24 = 72 tokens


def counted(model):
    sizes = [parameter.numel() for parameter in model.parameters()]
    matrices = [p.numel() for p in model.parameters() if sum(size > 1 for size in p.shape) > 1]
    return sum(matrices), sum(sizes) - sum(matrices), max(sizes)


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("decoder_depth", [None, 3])
def test_parameters_are_those_of_the_masked_autoencoder(name, decoder_depth):
    counts = Workload(model_name=name, grid=GRID, candidate_grid=GRID, decoder_depth=decoder_depth).parameters()
    model = MaskedAutoencoder.from_name(name, grid=GRID, decoder_depth=decoder_depth)
    assert (counts.matrices, counts.vectors, counts.largest) == counted(model)


@pytest.mark.parametrize("num_classes", [7, 5000])
def test_parameters_are_those_of_the_classifier(num_classes):
    counts = Workload(model_name="tiny", grid=GRID, candidate_grid=GRID).for_finetuning(num_classes=num_classes).parameters()
    model = VideoClassifier.from_name("tiny", grid=GRID, num_classes=num_classes)
    assert (counts.matrices, counts.vectors, counts.largest) == counted(model)


def test_tokens_and_clips_follow_the_recipe():
    work = Workload.from_recipe(load_recipe("default", ["selection.frame_candidates=1.5"]))
    assert (work.visible, work.targets, work.is_adaptive, work.scores_motion) == (156, 314, True, True)
    assert work.clip_bytes == 24 * 224 * 224 * 3
    all_tokens = Workload().for_finetuning(keep_ratio=1.0)
    assert (all_tokens.visible, all_tokens.targets, all_tokens.scores_motion) == (1568, 0, False)
    assert not Workload(pruning=TokenPruning("tube")).scores_motion


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown task 'train'"):
        Workload(task="train")
    with pytest.raises(ValueError, match="unknown model 'bass'"):
        Workload(model_name="bass")
