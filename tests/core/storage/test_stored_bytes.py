"""What the tensors of a file claim, whatever shares whatever."""

import torch

from mats_ds.core.storage.archives import count_stored_bytes


def test_storages_are_counted_once_and_loops_end():
    base = torch.zeros(100)
    content = {"a": base, "b": [base[:50], base.expand(1000, 100)], "c": {"d": torch.zeros(3, dtype=torch.float16)}}
    content["self"] = content
    assert count_stored_bytes(content) == 400 + 6


def test_nothing_is_read_of_tensors_without_numbers():
    assert count_stored_bytes({"a": torch.empty(3, 5, device="meta"), "b": "text", "c": None, 4: (1, {2})}) == 60


def test_sparse_tensors_are_passed_over():
    assert count_stored_bytes([torch.zeros(7, 11).to_sparse(), torch.zeros(3)]) == 12
