"""Run folders of other people: the report's readers count what they cannot read, and raise nothing
but ValueError."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mats_ds.core.run_dir import read_outcome, read_run
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.step_record import StepRecord
from mats_ds.planning.plan_file import read_plan
from tests.security.json_values import NUMBERS, SCALARS, objects

NAMES = list(StepRecord.__dataclass_fields__)
SOUND = dict.fromkeys(NAMES, 1)
DEEP = "[" * 100_000


@st.composite
def lines(draw):
    """A record with some of its values replaced, left out or cut off."""
    tree = dict(SOUND)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        tree[name] = draw(st.one_of(NUMBERS, SCALARS, st.sampled_from(["nan", "inf", "-inf", [], {}])))
    text = json.dumps(tree, separators=(",", ":"))
    return text[: draw(st.one_of(st.just(len(text)), st.integers(0, len(text))))]


@given(content=st.lists(st.one_of(lines(), objects(NAMES).map(json.dumps), st.text(max_size=10)), max_size=6).map("\n".join))
@example(content=DEEP + "}\n")
@example(content='{"schema":1,"step": 99999999999999999999999999}\n')
@example(content='{"schema":1,"step":99999999999999999999999999}\n{"schema":1,"step":-5}\n')
@example(content=json.dumps(SOUND | {"step": 10**30}) + "\n")
@example(content=json.dumps(SOUND | {"loss": "x", "model_flops": 10**400}, separators=(",", ":")) + "\n")
def test_records(tmp_path, read_or_refuse, content):
    folder = tmp_path / "records"
    folder.mkdir(exist_ok=True)
    (folder / "rank-00000.jsonl").write_bytes(content.encode("utf-8", "surrogatepass") + b"\n")
    reader = read_or_refuse(read_records, tmp_path)
    if reader is not None:
        records = list(reader)
        assert all(isinstance(record, StepRecord) for record in records)
        for columns in reader.by_rank[0].columns(["loss", "total_seconds", "num_clips"]):
            assert len(columns) == len(columns["loss"])


WORDS = ["schema", "parts", "first_step", "world_size", "outcome", "last_step", "rank", "recipe_name", "versions", "static_bytes"]


@pytest.mark.parametrize(("name", "read"), [("run.json", read_run), ("outcome.json", read_outcome), ("plan.json", read_plan)])
@given(content=st.one_of(objects(WORDS).map(json.dumps), st.text(max_size=20)))
@example(content=DEEP)
def test_the_small_files_of_a_run_folder(tmp_path, read_or_refuse, name, read, content):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    read_or_refuse(read, tmp_path)
