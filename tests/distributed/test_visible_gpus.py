"""Which GPUs a run may use: what nvidia-smi lists, and CUDA_VISIBLE_DEVICES as CUDA reads it."""

import pytest

from mats_ds.distributed import visible_gpus
from mats_ds.distributed.visible_gpus import Gpu, choose_gpus, find_driver_cuda, parse_gpus

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-2222-aa)
GPU 10: NVIDIA H100 80GB HBM3 (UUID: GPU-1010-aa)
"""
GPUS = parse_gpus(LISTED)


def test_gpus_and_their_mig_parts_are_read():
    assert [(gpu.index, gpu.is_mig) for gpu in GPUS] == [(0, False), (0, True), (0, True), (2, False), (10, False)]
    assert GPUS[1].uuid == "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 2, 10]),
        ("all", [0, 2, 10]),
        ("", []),
        (" ", []),
        ("2,0", [2, 0]),
        ("GPU-2222,10", [2, 10]),
        ("GPU-10", [10]),
        ("0,-1,2", [0]),
        ("2,7", [2]),
        ("2 , 10", [2, 10]),
        ("2,2", [2]),
    ],
)
def test_whole_gpus_are_chosen_in_the_order_of_the_variable(value, expected):
    chosen = choose_gpus(GPUS, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.index for gpu in chosen] == expected and not any(gpu.is_mig for gpu in chosen)


def test_a_mig_part_is_chosen_by_its_uuid():
    assert choose_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"}) == [GPUS[2]]
    old = parse_gpus("GPU 0: A (UUID: GPU-a)\n  MIG 1g.5gb Device 0: (UUID: MIG-GPU-a/1/0)\n")
    assert choose_gpus(old, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-a/1/0"}) == [Gpu(0, "MIG-GPU-a/1/0")]


@pytest.mark.parametrize("value", ["7", "-1", "GPU-9999", "MIG-9999", "two", "-1,0", "NoDevFiles"])
def test_a_value_that_fits_no_gpu_is_an_error_that_names_them(value):
    with pytest.raises(ValueError, match=rf"CUDA_VISIBLE_DEVICES={value} .*10 \(GPU-1010-aa\).*CPU"):
        choose_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": value})
    with pytest.raises(ValueError, match="none"):
        choose_gpus([], {"CUDA_VISIBLE_DEVICES": value})


def test_no_gpu_and_no_wish_is_no_error():
    for environment in ({}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "all"}):
        assert choose_gpus([], environment) == []


@pytest.mark.parametrize(
    ("header", "cuda"),
    [
        ("| NVIDIA-SMI 999.9    Driver Version: 999.9    CUDA Version: 12.8 |", "12.8"),
        ("KMD Version: 595.1  CUDA UMD Version: 13.2", "13.2"),
        ("Driver Version: 570.86", "12"),
        ("Driver Version: 580.1", "13"),
        ("Driver Version: 470.1", "11"),
        ("", None),
    ],
)
def test_the_newest_cuda_of_the_driver(monkeypatch, header, cuda):
    monkeypatch.setattr(visible_gpus, "_ask_driver", lambda *options: header)
    assert find_driver_cuda() == cuda
