"""Features come back as they were, and only for what they were made from."""

from __future__ import annotations

import os

import pytest
import torch

from mats_ds.evaluation.features.feature_store import FrozenSet, load_features, make_key, save_features


def make_features(*, with_tokens: bool = True) -> FrozenSet:
    tokens = torch.randn(3, 5, 7).half() if with_tokens else None
    return FrozenSet(torch.randn(3, 7), torch.tensor([2, 0, 1]), torch.tensor([0, 1, 4]), tokens)


def test_they_come_back_bit_for_bit(tmp_path):
    features = make_features()
    save_features(tmp_path / "new" / "a.safetensors", features, key="k")
    found = load_features(tmp_path / "new" / "a.safetensors", key="k", needs_tokens=True)
    for name, tensor in vars(features).items():
        assert torch.equal(getattr(found, name), tensor) and getattr(found, name).dtype == tensor.dtype
    assert load_features(tmp_path / "new" / "a.safetensors", key="k", needs_tokens=False).tokens_SKD is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_another_key_missing_tokens_a_torn_or_absent_file_are_passed_over(tmp_path):
    path = tmp_path / "a.safetensors"
    assert load_features(path, key="k", needs_tokens=False) is None
    save_features(path, make_features(with_tokens=False), key="k")
    assert load_features(path, key="other", needs_tokens=False) is None
    assert load_features(path, key="k", needs_tokens=True) is None
    path.write_bytes(path.read_bytes()[:40])
    assert load_features(path, key="k", needs_tokens=False) is None


@pytest.fixture
def made_from(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"video")
    return dict(
        state={"a": torch.ones(2), "b": torch.zeros(2, dtype=torch.bfloat16)},
        paths=[str(tmp_path / "v.mp4"), "gone.mp4"],
        settings={"stride": 4},
    )


@pytest.mark.parametrize(
    "change",
    [
        {"state": {"a": torch.tensor([1.0, 1.0000001]), "b": torch.zeros(2, dtype=torch.bfloat16)}},
        {"state": {"a": torch.ones(2), "c": torch.zeros(2, dtype=torch.bfloat16)}},
        {"paths": ["other.mp4", "gone.mp4"]},
        {"settings": {"stride": 2}},
    ],
)
def test_the_key_changes_with_all_that_matters(made_from, change):
    assert make_key(**made_from) == make_key(**made_from)
    assert make_key(**made_from) != make_key(**made_from | change)


def test_the_key_changes_with_a_file_that_was_written_anew(made_from):
    before = make_key(**made_from)
    os.utime(made_from["paths"][0], ns=(1, 1))
    assert make_key(**made_from) != before
