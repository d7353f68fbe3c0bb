"""What a field of a run folder can hold."""

from dataclasses import fields

import pytest

from mats_ds.core.events import RunInfo
from mats_ds.core.limits import MAX_RANKS, find_fault
from mats_ds.core.run_dir import Outcome, RunPart
from mats_ds.planning.plan_file import Plan


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("world_size", 0, "int"),
        ("world_size", MAX_RANKS + 1, "int"),
        ("world_size", True, "int"),
        ("world_size", 2.0, "int"),
        ("num_tokens", -1, "int"),
        ("num_parameters", 10**400, "int"),
        ("peak_flops", 0, "float | None"),
        ("peak_flops", float("nan"), "float | None"),
        ("unix_seconds", 3e13, "float"),
        ("recipe_name", "x" * 6000, "str"),
        ("recipe_name", None, "str"),
        ("static_bytes", [1], "dict[str, int]"),
        ("static_bytes", {"weights": -1}, "dict[str, int]"),
        ("static_bytes", {"w" * 300: 1}, "dict[str, int]"),
        ("versions", {"torch": 2}, "dict[str, str]"),
        ("versions", {str(number): "" for number in range(300)}, "dict[str, str]"),
        ("decoding", ["NVDEC"], "dict[str, Any]"),
        ("decoding", {"route": {"reasons": [object()]}}, "dict[str, Any]"),
        ("decoding", {"route": {"num_seen": float("nan")}}, "dict[str, Any]"),
        ("decoding", {"route": {"num_seen": 10**400}}, "dict[str, Any]"),
        ("decoding", {"nvdec": {"x" * 300: 1}}, "dict[str, Any]"),
        ("decoding", {"nvdec": {"problem": "x" * 6000}}, "dict[str, Any]"),
        ("decoding", {"formats": [0] * 300}, "dict[str, Any]"),
        ("decoding", {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}, "dict[str, Any]"),
        ("assumptions", "abc", "tuple[str, ...]"),
        ("averaged", 1, "bool"),
    ],
)
def test_a_fault_names_the_field_in_one_short_line(name, value, kind):
    fault = find_fault(name, value, kind)
    assert name in fault and "\n" not in fault and len(fault) < 200


@pytest.mark.parametrize("kind", [RunInfo, RunPart, Outcome, Plan])
def test_every_field_of_the_small_files_is_checked(kind):
    """An object of no known type is refused by all; a new type of field that nobody checks fails
    here."""
    for field in fields(kind):
        assert find_fault(field.name, object(), str(field.type)) is not None


def test_the_facts_of_what_decodes_on_a_gpu_are_taken():
    """They lie in objects and lists; every run on a GPU has them."""
    facts = {
        "decoder": "NVDEC",
        "pipelines": 7,
        "nvdec": {"codecs": {"h264": {"smallest": [48, 48], "num_engines": 7}}, "problem": ""},
        "route": {"num_nvdec": 5, "reasons": {"rotation": 3}, "formats": [["h264", 256, 352]], "other": None},
        "choice": {"why": "faster", "clips_per_second": {"NVDEC": 300.5, "PyAV": 0.0}, "kept": False},
    }
    assert find_fault("decoding", facts, "dict[str, Any]") is None
