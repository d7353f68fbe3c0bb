"""Peaks of GPUs: the table by the driver's names, and a measurement that is kept for the next
run."""

import json
import types

import pytest
import torch

from mats_ds.metering import peak_flops
from mats_ds.metering.peak_flops import Peak, arithmetic_of, choose_peak, find_peak, measure_peak

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
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Tesla V100-SXM2-32GB", None),
        ("NVIDIA RTX 6000 Ada Generation", None), ("CPU", None),
    ],
)  # fmt: skip
def test_only_gpus_whose_peak_is_known_have_one(name, teraflops):
    assert find_peak(name) == (None if teraflops is None else Peak(teraflops * 1e12, "table"))


@pytest.mark.parametrize(
    ("name", "fp32", "tf32"),
    [
        ("NVIDIA A100-SXM4-80GB", 19.5, 156), ("NVIDIA A10", 31.2, 62.5), ("NVIDIA A30", 10.3, 82),
        ("NVIDIA H100 80GB HBM3", 66.9, 494.7), ("NVIDIA H100 PCIe", 51.2, 378), ("NVIDIA H200", 66.9, 494.7),
        ("NVIDIA B200", None, None), ("NVIDIA L4", 30.3, 60), ("NVIDIA L40", 90.5, 90.5), ("NVIDIA L40S", 91.6, 183),
        ("NVIDIA RTX A6000", 38.7, 77.4), ("NVIDIA GeForce RTX 3090", 35.6, 35.6), ("NVIDIA GeForce RTX 4090", 82.6, 82.6),
        ("Tesla V100-SXM2-32GB", 15.7, None), ("Tesla V100-PCIE-16GB", 14, None), ("Tesla V100S-PCIE-32GB", 16.4, None),
        ("NVIDIA H100 NVL", None, None), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None, None),
    ],
)  # fmt: skip
def test_float32_has_peaks_of_its_own(name, fp32, tf32):
    for arithmetic, teraflops in (("fp32", fp32), ("tf32", tf32)):
        assert find_peak(name, arithmetic) == (None if teraflops is None else Peak(teraflops * 1e12, "table", arithmetic))


@pytest.fixture
def float32_setting():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("setting", "capability", "override", "arithmetic"),
    [
        ("highest", (9, 0), None, "fp32"), ("high", (9, 0), None, "tf32"), ("high", (8, 0), "1", "tf32"),
        ("high", (9, 0), "0", "fp32"), ("high", (7, 0), None, "fp32"),
    ],
)  # fmt: skip
def test_float32_is_tf32_only_where_torch_gpu_and_driver_allow_it(
    monkeypatch, float32_setting, setting, capability, override, arithmetic
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    float32_setting(setting)
    assert arithmetic_of("fp32", CUDA) == arithmetic
    assert arithmetic_of("bf16", CUDA) == "bf16"
    assert arithmetic_of("fp16", CUDA) is None


def test_a_cpu_has_no_peak(tmp_path):
    assert choose_peak(CPU, "CPU", cache=tmp_path / "peaks.json") is None


def test_an_unknown_gpu_is_measured_once_and_remembered(tmp_path, monkeypatch):
    calls = []
    rates = {"bf16": 4e13, "fp32": 3e12}
    monkeypatch.setattr(peak_flops, "measure_peak", lambda device, arithmetic: calls.append(arithmetic) or rates[arithmetic])
    cache = tmp_path / "folder" / "peaks.json"
    for _ in range(2):
        assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=cache) == Peak(4e13, "measured")
        assert choose_peak(CUDA, "NVIDIA Foo 9000", "fp32", cache=cache) == Peak(3e12, "measured", "fp32")
    assert calls == ["bf16", "fp32"]
    assert choose_peak(CUDA, "NVIDIA A100-SXM4-80GB", cache=cache) == Peak(312e12, "table")
    assert choose_peak(CUDA, "NVIDIA A100-SXM4-80GB", "fp32", cache=cache) == Peak(19.5e12, "table", "fp32")
    assert choose_peak(CUDA, "NVIDIA A100-SXM4-80GB", None, cache=cache) is None
    assert json.loads(cache.read_text()) == {"NVIDIA Foo 9000": 4e13, "NVIDIA Foo 9000, fp32": 3e12}


@pytest.mark.parametrize("text", ["{", "[1]", '{"NVIDIA Foo 9000": "fast"}', '{"NVIDIA Foo 9000": 0}'])
def test_a_spoilt_cache_is_measured_anew(tmp_path, monkeypatch, text):
    monkeypatch.setattr(peak_flops, "measure_peak", lambda device, arithmetic: 4e13)
    cache = tmp_path / "peaks.json"
    cache.write_text(text)
    assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=cache) == Peak(4e13, "measured")


def test_a_gpu_that_cannot_be_measured_is_unknown_and_logged(tmp_path, monkeypatch, caplog):
    def fail(device, arithmetic):
        raise RuntimeError("no bf16 here")

    monkeypatch.setattr(peak_flops, "measure_peak", fail)
    assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=tmp_path / "peaks.json") is None
    assert "NVIDIA Foo 9000 in bf16 is not known and could not be measured: no bf16 here" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(peak_flops, "measure_peak", lambda device, arithmetic: 4e13)
    (tmp_path / "file").touch()
    assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=tmp_path / "file" / "peaks.json").flops_per_second == 4e13
    assert "could not be kept" in caplog.text


def test_the_measurement_is_a_rate_that_a_device_could_have():
    for arithmetic in ("bf16", "fp32"):
        assert 1e7 < measure_peak(CPU, arithmetic, side=64) < 1e14


def test_a_cache_is_not_written_through_a_link_nor_believed_whatever_it_says(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(peak_flops, "measure_peak", lambda device, arithmetic: 4e13)
    cache, private = tmp_path / "peaks.json", tmp_path / "private"
    private.write_text('{"NVIDIA Foo 9000": 1e300, "other": true}')
    cache.symlink_to(private)
    assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=cache).flops_per_second == 4e13
    assert private.read_text().startswith('{"NVIDIA Foo 9000": 1e300') and "symbolic link" in caplog.text
    cache.unlink()
    private.rename(cache)
    # 1e300 is no rate of a GPU
    assert choose_peak(CUDA, "NVIDIA Foo 9000", cache=cache).flops_per_second == 4e13
    assert json.loads(cache.read_text()) == {"NVIDIA Foo 9000": 4e13}
