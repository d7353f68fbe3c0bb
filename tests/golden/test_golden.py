"""Every number of the golden set, as it was before the code was rearranged: see measure.py for what
is computed.

On the machine and versions that expected.json names, bit for bit; elsewhere floating-point numbers
within 1e-6 of their size or, for losses that training has carried on for many steps, of the largest
one.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.golden.measure import EXPECTED, MEASURES, SUM, find_machine, measure_old_checkpoint, write_videos

TOLERANCE = 1e-6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The videos, and what each measure leaves for the next."""
    folder = tmp_path_factory.mktemp("golden")
    write_videos(folder)
    return folder


def find_differences(measured: Any, expected: Any, *, exact: bool, name: str = "") -> list[str]:
    """Where two trees differ, as "report.checks.0.passed: True, expected False"."""
    if isinstance(expected, dict) and isinstance(measured, dict):
        keys = [*expected, *(key for key in measured if key not in expected)]
        pairs = [(f"{name}.{key}", measured.get(key), expected.get(key)) for key in keys if exact or key != SUM]
    elif isinstance(expected, list) and isinstance(measured, list) and len(expected) == len(measured):
        pairs = [(f"{name}.{index}", *pair) for index, pair in enumerate(zip(measured, expected, strict=True))]
    elif is_close(measured, expected, exact=exact):
        return []
    else:
        return [f"{name.lstrip('.')}: {measured!r}, expected {expected!r}"]
    return [line for key, *pair in pairs for line in find_differences(*pair, exact=exact, name=key)]


def is_close(measured: Any, expected: Any, *, exact: bool) -> bool:
    if exact or not isinstance(measured, float) or not isinstance(expected, float):
        return measured == expected and type(measured) is type(expected)
    return math.isclose(measured, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@pytest.mark.parametrize("name", MEASURES)  # in this order: each takes what the ones before left
def test_gives_the_same_numbers_as_before(name, folder, expected):
    measured = json.loads(json.dumps(MEASURES[name](folder)))
    differences = find_differences(measured, expected[name], exact=find_machine() == expected["machine"])
    assert not differences, "\n".join(differences[:20])


def test_resuming_within_the_run_gives_what_the_run_gave(expected):
    assert expected["pretraining"]["resumed"] == expected["pretraining"]["straight"][20:]


def test_a_checkpoint_of_older_code_goes_on_as_if_nothing_had_changed(folder, expected):
    measured = measure_old_checkpoint(folder)["resumed"]
    exact = find_machine() == expected["machine"]
    assert not find_differences(measured, expected["pretraining"]["straight"][20:], exact=exact)


def test_differences_are_found():
    tree = {"a": [1, {"b": 0.5, SUM: "x"}], "c": None}
    assert find_differences(tree, tree, exact=True) == []
    changed = {"a": [1, {"b": 0.5 + 1e-8, SUM: "y"}], "c": 0}
    assert find_differences(changed, tree, exact=False) == ["c: 0, expected None"]
    assert len(find_differences(changed, tree, exact=True)) == 3
    assert find_differences({"a": [1]}, {"a": [1, 2], "d": 1}, exact=True)
