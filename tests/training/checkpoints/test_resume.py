"""Where a run goes on: what is refused in one line, and what is left on the disk then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mats_ds import load_recipe
from mats_ds.training.checkpoints.checkpoint import find_checkpoint, seal
from tests.training.checkpoint_content import STATES, WEIGHTS, content_of, rewrite, write_checkpoint

pytest.importorskip("deepspeed")


def save_foreign(folder, *, weights, states):
    """A checkpoint of another trainer, with sums that are right."""
    folder.mkdir(parents=True)
    torch.save(weights, folder / WEIGHTS)
    for rank in range(2):
        torch.save(states, folder / STATES.format(rank))
    seal(folder, step=5, world_size=2, facts={"zero_stage": 2, "global_batch": 16})


@pytest.mark.parametrize(
    ("weights", "states"),
    [
        ({"module": {}}, {"model": 3}),
        ([1, 2], [3]),
        ({"module": None, "universal_checkpoint_info": 7}, {"optimizer_state_dict": {"zero_stage": 2}}),
        ({"module": {}, "dp_world_size": 2, "mp_world_size": 1}, {"optimizer_state_dict": None}),
    ],
)
def test_what_deepspeed_cannot_convert_is_one_line_and_leaves_nothing(tmp_path, weights, states):
    from mats_ds.training.checkpoints.resume import convert

    save_foreign(tmp_path / "step-00000005", weights=weights, states=states)
    kept, found = content_of(tmp_path), find_checkpoint(tmp_path)
    words = r"step-00000005 (is not as DeepSpeed writes|could not be re-sharded: .*--num_gpus 2)"
    with pytest.raises(ValueError, match=words) as refusal:
        convert(found)
    assert "\n" not in str(refusal.value) and content_of(tmp_path) == kept


def test_the_one_resumed_from_is_known_to_what_prunes(tmp_path):
    from mats_ds.training.checkpoints.resume import ResumePoint
    from mats_ds.training.options import RunOptions
    from mats_ds.training.run import TrainingRun

    write_checkpoint(tmp_path / "checkpoints", 5)
    recipe = load_recipe("tiny", ["run.keep_checkpoints=1"])
    point = ResumePoint(find_checkpoint(tmp_path / "checkpoints"))
    ranks, plan = SimpleNamespace(rank=0, world_size=1), SimpleNamespace(global_batch=16)
    for known, tag in ((None, None), (point, "step-00000005")):
        run = TrainingRun("pretrain", recipe, RunOptions("x.json"), ranks, plan, tmp_path, {}, known)
        assert run.make_saver().resumed_from == tag


def test_a_checkpoint_that_holds_another_step_than_it_says_is_refused(tmp_path):
    from mats_ds.training.checkpoints.resume import ResumePoint, resume

    rewrite(write_checkpoint(tmp_path, 5).rename(tmp_path / "step-00000009"), step=9)
    engine = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[]), load_checkpoint=lambda folder, tag: (folder, {"step": 5})
    )
    with pytest.raises(ValueError, match="step-00000009 holds another step than it says, 5"):
        resume(engine, ResumePoint(find_checkpoint(tmp_path)), SimpleNamespace(rank=0, world_size=1))
