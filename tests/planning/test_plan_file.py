"""plan.json: written, read back, absent, spoilt."""

import json

import pytest

from mats_ds.planning.plan_file import Plan, read_plan, write_plan

PLAN = Plan(
    world_size=8, micro_batch=24, bytes_by_kind={"weights": 3, "activations": 50, "outside": 2}, model_flops_per_clip=7,
    hardware_flops_per_clip=9, device_name="NVIDIA A100-SXM4-80GB", memory_error=0.07, step_seconds=0.5, hours=3.0,
    assumptions=("no data stalls", "ZeRO-2"),
)  # fmt: skip


def test_a_plan_survives_the_way_to_json_and_back(tmp_path):
    path = write_plan(tmp_path, PLAN)
    assert path == tmp_path / "plan.json"
    assert read_plan(tmp_path) == PLAN
    assert PLAN.peak_bytes == 55


def test_a_run_without_a_plan_has_none(tmp_path):
    assert read_plan(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 2}, "update mats_ds"),
        ({"bytes_by_kind": [1]}, "bytes_by_kind maps kinds of memory to"),
        ({"bytes_by_kind": {"weights": "3"}}, "bytes_by_kind maps"),
        ({"world_size": None}, "world_size"),
    ],
)
def test_a_plan_of_another_kind_says_so(tmp_path, change, complaint):
    path = write_plan(tmp_path, PLAN)
    tree = json.loads(path.read_text()) | change
    if change.get("world_size", 1) is None:
        del tree["world_size"]
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="plan.json") as error:
        read_plan(tmp_path)
    assert complaint in str(error.value)


def test_keys_of_a_later_version_are_ignored(tmp_path):
    path = write_plan(tmp_path, PLAN)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new_figure": 1}))
    assert read_plan(tmp_path) == PLAN
