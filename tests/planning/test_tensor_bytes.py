"""Bytes of tensors: kept for backward by one forward pass, and alive: real ones, fake ones, and by
torch.profiler's events."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from mats_ds.planning.tensor_bytes import LiveBytes, SavedBytes


def test_counts_one_training_pass_and_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    frames = torch.randn(5, 8)
    saved = SavedBytes(model)
    with torch.no_grad():
        model(frames)  # nothing is kept: not this one
    assert saved.num_bytes is None
    model(frames).sum().backward()
    assert saved.num_bytes == 2 * 5 * 16 * 4  # before and after GELU; neither weights nor the input
    model(torch.randn(50, 8)).sum().backward()
    assert saved.num_bytes == 2 * 5 * 16 * 4
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_pass_that_fails_leaves_no_hook_of_autograd_behind():
    class Failing(nn.Module):
        def forward(self, value):
            raise RuntimeError("no")

    model = Failing()
    SavedBytes(model)
    for _ in range(2):
        try:
            model(torch.zeros(1))
        except RuntimeError as error:
            assert str(error) == "no"
    weight = torch.ones(1, requires_grad=True)
    (weight * weight).backward()
    assert weight.grad == 2


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
