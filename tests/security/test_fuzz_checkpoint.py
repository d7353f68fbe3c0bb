"""complete.json of any content: a checkpoint is complete, or damaged for a reason, or there is a
ValueError."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mats_ds.core.checkpoint_files import find_damage
from mats_ds.models.weights.load import read_weights
from mats_ds.training.checkpoints.checkpoint import Checkpoint, find_checkpoint
from tests.security.json_values import SCALARS, objects

WORDS = ["format_version", "step", "world_size", "files", "bytes", "sha256", "a.pt", "mp_rank_00_model_states.pt"]
NAMES = st.sampled_from(
    ["a.pt", "mp_rank_00_model_states.pt", "../a.pt", "/etc/passwd", "a\0b", "x" * 300, "", ".", "step", "/dev/zero"]
)
STATED = st.one_of(
    SCALARS,
    objects(WORDS),
    st.fixed_dictionaries({"bytes": st.one_of(st.just(0), SCALARS), "sha256": SCALARS}),
)
COMPLETES = st.one_of(
    objects(WORDS),
    st.fixed_dictionaries(
        {
            "format_version": st.one_of(st.just(1), SCALARS),
            "step": st.one_of(st.just(3), SCALARS),
            "world_size": st.one_of(st.just(1), SCALARS),
            "files": st.one_of(st.dictionaries(NAMES, STATED, max_size=3), SCALARS, st.lists(SCALARS, max_size=2)),
        }
    ),
)
DEEP = "[" * 100_000


@pytest.fixture
def step(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"")
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"")
    return folder


@given(content=st.one_of(COMPLETES.map(json.dumps), st.text(max_size=20)))
@example(content='{"format_version": 1, "step": 1, "world_size": 1, "files": []}')
@example(content='{"format_version": 1, "files": {}}')
@example(content='{"format_version": 1, "step": "x", "world_size": 1, "files": {}}')
@example(content=json.dumps({"format_version": 1, "step": 1, "world_size": 1, "files": {"x" * 300: {"bytes": 0}}}))
@example(content=DEEP)
def test_complete_json(step, read_or_refuse, content):
    (step / "complete.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    problem = find_damage(step)
    assert problem is None or problem.strip()
    for folder in (step.parent, step):
        found = read_or_refuse(find_checkpoint, folder)
        assert found is None or (isinstance(found, Checkpoint) and type(found.step) is int and type(found.world_size) is int)
        assert read_or_refuse(read_weights, folder) is None
