"""The selection that travels with exported models keeps the tokens that mats_ds keeps, bit for
bit, for every option."""

import ast
import inspect
import sys

import pytest
import torch

from mats_ds.core.token_grid import count_tokens
from mats_ds.exporting.hub.remote_code import token_selection_mats
from mats_ds.exporting.programs.network_program import selection_options
from mats_ds.models.vit import split_patches
from tests.exporting.models import OPTIONS, make_classifier, make_clips


@pytest.mark.parametrize("name", OPTIONS)
def test_keeps_the_same_tokens_for_every_option(name):
    model = make_classifier(**OPTIONS[name])
    clips = make_clips(model.candidate_grid.num_frames)
    ours = model.choose(clips)
    patches_BNP = token_selection_mats.split_patches(clips, model.grid.tubelet)
    assert torch.equal(patches_BNP, split_patches(clips, model.candidate_grid))
    with torch.no_grad():
        theirs = token_selection_mats.select_tokens(
            patches_BNP, model.patch_embed, num_tubelets=model.candidate_grid.tau, options=selection_options(model)
        )
    assert torch.equal(theirs.index_BK, ours.selection.visible_BV)
    assert torch.equal(theirs.tubelets_BT, ours.tubelets_BT)
    assert torch.equal(theirs.patches_BNP, ours.patches_BNP)
    assert (theirs.merged_BKP is None) == (ours.merged is None)
    if ours.merged is not None:
        assert torch.equal(theirs.merged_BKP, ours.merged.patches_BKP) and torch.equal(theirs.size_BK, ours.merged.size_BK)


@pytest.mark.parametrize("num_tokens", [10, 72, 1568])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 1.0])
def test_counts_tokens_as_we_do(num_tokens, ratio):
    assert token_selection_mats.count_tokens(ratio, num_tokens) == count_tokens(ratio, num_tokens)


def test_an_unknown_strategy_and_a_ratio_of_no_token_are_named():
    patches = torch.zeros(1, 12, 192, dtype=torch.uint8)
    options = token_selection_mats.SelectionOptions(keep_ratio=0.5, num_tubelets=2, strategy="tube")
    with pytest.raises(ValueError, match="random_drop.*'tube'"):
        token_selection_mats.select_tokens(patches, torch.Tensor.float, num_tubelets=2, options=options)
    options = token_selection_mats.SelectionOptions(keep_ratio=0.01, num_tubelets=2)
    with pytest.raises(ValueError, match="keep_ratio 0.01 of 12 tokens"):
        token_selection_mats.select_tokens(patches, torch.Tensor.float, num_tubelets=2, options=options)


def test_the_travelling_code_imports_nothing_of_ours():
    from pathlib import Path

    from mats_ds.exporting.hub import remote_code
    from mats_ds.exporting.hub.remote_code import CODE_FILES

    allowed = {"torch", "numpy", "transformers", *sys.stdlib_module_names}
    home = Path(inspect.getfile(remote_code)).parent
    assert {path.name for path in home.glob("*.py")} == {*CODE_FILES, "__init__.py"}
    for name in CODE_FILES:
        for node in ast.walk(ast.parse((home / name).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module] if node.level == 0 else []
                assert node.level == 0 or f"{node.module}.py" in CODE_FILES
            assert {imported.partition(".")[0] for imported in names} <= allowed
