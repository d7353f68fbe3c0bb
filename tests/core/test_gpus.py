"""One table of GPUs: short names that people type, and names that the driver reports."""

import pytest

from mats_ds.core.gpus import GPUS, find_gpu, find_model, num_engines


@pytest.mark.parametrize(
    ("asked", "name"),
    [("a100-80g", "a100-80g"), ("8xA100-40g", "a100-40g"), ("3090", "3090-24g"), (" H200 ", "h200-141g"), ("l4", "l4-24g")],
)
def test_a_gpu_is_found_by_a_short_name(asked, name):
    assert find_gpu(asked) is GPUS[name]


@pytest.mark.parametrize(("asked", "facts"), [("a100", "a100-80g, a100-40g"), ("h1000-80g", "mean h100-80g?"), ("", "4090-24g")])
def test_a_name_of_several_or_of_none_is_an_error_that_lists_what_there_is(asked, facts):
    with pytest.raises(ValueError, match=facts.replace("?", r"\?")):
        find_gpu(asked)


def test_every_gpu_of_the_table_is_found_by_the_name_that_its_driver_reports():
    for gpu in GPUS.values():
        assert gpu in find_model(gpu.device_name).gpus


@pytest.mark.parametrize(
    ("device_name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 7),
        ("NVIDIA H100 NVL", 7),  # its peaks are not known, its decoders are
        ("NVIDIA H200", 7),
        ("NVIDIA A100-SXM4-80GB", 5),
        ("NVIDIA A100-PCIE-40GB", 5),
        ("NVIDIA L4", 4),
        ("NVIDIA L40S", 3),
        ("NVIDIA RTX 6000 Ada Generation", 3),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 4),
        ("NVIDIA A10", None),  # two, as any GPU that is not in the table
        ("NVIDIA GeForce RTX 4090", None),
        # a part of the engines, the name does not tell which
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("Something New", None),
    ],
)
def test_engines_are_known_by_the_reported_name(device_name, expected):
    assert num_engines(device_name) == expected
