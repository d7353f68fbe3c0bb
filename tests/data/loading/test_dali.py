"""As many pipelines as the GPU has decoding engines; page-locked memory stays within its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mats_ds.data.loading import dali
from mats_ds.data.loading.batching import MAX_CHUNK_BYTES
from mats_ds.data.loading.dali import DEFAULT_GRAPHS, choose_num_graphs, device_codecs, pinned_bytes_bound
from mats_ds.data.loading.nvdec.limits import Nvdec
from mats_ds.data.video.nvdec_support import MAX_ENCODED_BYTES, NVDEC_LIMITS


def test_pipelines_follow_the_card_unless_somebody_knows_better(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(dali, "find_nvdec", lambda device: Nvdec({"h264": replace(NVDEC_LIMITS["h264"], num_engines=3)}))
    assert choose_num_graphs(cuda) == 3 and choose_num_graphs(cuda, asked=9) == 9  # as the driver counts them
    assert set(device_codecs(cuda)) == {"h264"} and not device_codecs(torch.device("cpu"))
    monkeypatch.setattr(dali, "find_nvdec", lambda device: Nvdec(NVDEC_LIMITS))  # an old driver does not
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert choose_num_graphs(cuda) == 4 and choose_num_graphs(cuda, asked=9) == 9
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something New")
    assert choose_num_graphs(cuda) == DEFAULT_GRAPHS
    assert choose_num_graphs(torch.device("cpu")) == DEFAULT_GRAPHS
    with pytest.raises(ValueError, match="between 1 and 16, got 0"):
        choose_num_graphs(cuda, asked=0)


def test_page_locked_memory_is_bounded():
    assert pinned_bytes_bound(7, micro_batch=64) == 7 * 2 * (MAX_CHUNK_BYTES + MAX_ENCODED_BYTES) < 2 << 30
    assert pinned_bytes_bound(2, micro_batch=1) == 4 * MAX_ENCODED_BYTES
