"""The counter of live bytes on real tensors, on fake ones, and against torch.profiler's memory events."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from mats_ds.planning.tensor_bytes import LiveBytes


def work(size):
    kept = torch.ones(size, size) * 3.0
    (kept @ kept).relu_().sum()
    return kept


def test_storages_count_once_and_until_nobody_refers_to_them():
    with LiveBytes() as live:
        first = torch.zeros(256)  # 1024 bytes
        view = first[3:].add_(1)
        assert (live.now_bytes, live.peak_bytes) == (1024, 1024)
        second = torch.zeros(1)  # rounded up to 512
        assert live.now_bytes == 1536
        del first, second
        assert (live.now_bytes, live.peak_bytes) == (1024, 1536)
        live.restart()
        del view
        assert (live.now_bytes, live.peak_bytes) == (0, 1024)


def test_tensors_without_memory_do_not_count():
    with LiveBytes() as live:
        torch.zeros(1000, device="meta")
    assert live.peak_bytes == 0


def test_fake_tensors_count_as_real_ones():
    with LiveBytes() as live:
        held = work(64)
    with FakeTensorMode(), LiveBytes() as fake:
        fake_held = work(64)
    assert held.shape == fake_held.shape
    assert (fake.now_bytes, fake.peak_bytes) == (live.now_bytes, live.peak_bytes) == (64 * 64 * 4, live.peak_bytes)


def test_the_peak_is_that_of_the_profilers_memory_events():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work(640)
    now = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    with LiveBytes() as live:
        work(640)
    assert abs(live.peak_bytes / peak - 1) < 0.01
