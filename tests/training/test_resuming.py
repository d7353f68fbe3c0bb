"""Where a run goes on: what is refused in one line, and what is left on the disk then."""

from __future__ import annotations

import pytest
import torch

from mats_ds.training.checkpoint import find_checkpoint, seal
from tests.training.checkpoints import STATES, WEIGHTS, content_of

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
    from mats_ds.training.resuming import convert

    save_foreign(tmp_path / "step-00000005", weights=weights, states=states)
    kept, found = content_of(tmp_path), find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"step-00000005 could not be divided anew: .*--num_gpus 2") as refusal:
        convert(found)
    assert "\n" not in str(refusal.value) and content_of(tmp_path) == kept
