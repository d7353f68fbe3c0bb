"""Text of JSON and YAML -> values; what means two things is refused."""

from __future__ import annotations

import pytest

from mats_ds.core.storage.documents import parse_json, parse_strict_json, parse_yaml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "'a' is given more than once"),
        ('[{"a": {"c": 1, "d": 2, "d": 3}}]', "'d' is given more than once"),
        ('{"a": NaN}', "NaN is no number"),
        ("[1, -Infinity]", "-Infinity is no number"),
        ('{"a": -1e400}', "-1e400 is beyond"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_strict_json_has_one_meaning_and_finite_numbers(text, words):
    with pytest.raises(ValueError) as caught:
        parse_strict_json(text)
    assert words in str(caught.value)


def test_strict_json_is_json():
    text = '{"a": [1, 2.5, -3e8, true, null, "NaN"], "b": {"a": {}}}'
    assert parse_strict_json(text) == parse_json(text) == {"a": [1, 2.5, -3e8, True, None, "NaN"], "b": {"a": {}}}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "top:\n  - {b: 1}\n  - b: 1\n    b: 1\n"])
def test_a_key_that_yaml_gives_twice_is_named_with_its_line(text):
    with pytest.raises(ValueError, match=r"line \d+: '[ab]' is given more than once"):
        parse_yaml(text)


def test_the_same_key_in_two_sections_is_no_repetition():
    assert parse_yaml("a: {b: 1}\nc: {b: 1}\n") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize("text", ["a: 1\nb: [2\nc: 3\n", "a: 1\nb: c: d\n", "a: \x07\n", "a: !!int x\n"])
def test_what_is_wrong_with_yaml_is_one_line(text):
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value) and str(caught.value)


def test_yaml_that_does_not_parse_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"line 2, column 5: .*mapping values are not allowed"):
        parse_yaml("a: 1\nb: c: d\n")
