"""Peaks of cards: the table by the driver's names, and a measurement that is kept for the next run."""

import json
import types

import pytest
import torch

from mats_ds.metering import peaks
from mats_ds.metering.peaks import Peak, find_peak, measure_peak, settle_peak

CPU = torch.device("cpu")
CUDA = types.SimpleNamespace(type="cuda")


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None), ("NVIDIA A10", 125), ("NVIDIA A10G", None),
        ("NVIDIA A30", 165), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", 989.4), ("NVIDIA H200 NVL", None), ("NVIDIA GH200 480GB", None), ("NVIDIA B200", 2250),
        ("NVIDIA GB200", None), ("NVIDIA L4", 121), ("NVIDIA L40", 181.05), ("NVIDIA L40S", 362.05), ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 3090", 71), ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA RTX 6000 Ada Generation", None), ("CPU", None),
    ],
)  # fmt: skip
def test_only_cards_whose_peak_is_known_have_one(name, teraflops):
    assert find_peak(name) == (None if teraflops is None else Peak(teraflops * 1e12, "table"))


def test_a_cpu_has_no_peak(tmp_path):
    assert settle_peak(CPU, "CPU", cache=tmp_path / "peaks.json") is None


def test_an_unknown_card_is_measured_once_and_remembered(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(peaks, "measure_peak", lambda device: calls.append(device) or 4e13)
    cache = tmp_path / "folder" / "peaks.json"
    for _ in range(2):
        assert settle_peak(CUDA, "NVIDIA Foo 9000", cache=cache) == Peak(4e13, "measured")
    assert len(calls) == 1
    assert settle_peak(CUDA, "NVIDIA A100-SXM4-80GB", cache=cache) == Peak(312e12, "table")
    assert json.loads(cache.read_text()) == {"NVIDIA Foo 9000": 4e13}


@pytest.mark.parametrize("text", ["{", "[1]", '{"NVIDIA Foo 9000": "fast"}', '{"NVIDIA Foo 9000": 0}'])
def test_a_spoilt_cache_is_measured_anew(tmp_path, monkeypatch, text):
    monkeypatch.setattr(peaks, "measure_peak", lambda device: 4e13)
    cache = tmp_path / "peaks.json"
    cache.write_text(text)
    assert settle_peak(CUDA, "NVIDIA Foo 9000", cache=cache) == Peak(4e13, "measured")


def test_a_card_that_cannot_be_measured_is_unknown_and_said_so(tmp_path, monkeypatch, caplog):
    def fail(device):
        raise RuntimeError("no bf16 here")

    monkeypatch.setattr(peaks, "measure_peak", fail)
    assert settle_peak(CUDA, "NVIDIA Foo 9000", cache=tmp_path / "peaks.json") is None
    assert "NVIDIA Foo 9000 is not known and could not be measured: no bf16 here" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(peaks, "measure_peak", lambda device: 4e13)
    (tmp_path / "file").touch()
    assert settle_peak(CUDA, "NVIDIA Foo 9000", cache=tmp_path / "file" / "peaks.json").flops_per_second == 4e13
    assert "could not be kept" in caplog.text


def test_the_measurement_is_a_rate_that_a_device_could_have():
    assert 1e7 < measure_peak(CPU, side=64) < 1e14
