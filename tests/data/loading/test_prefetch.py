"""Clips come in the order asked for; what fails or hangs is replaced; memory and threads stay
bounded."""

import threading
import time
from dataclasses import dataclass

import pytest

from mats_ds.core.clips import ClipSpec
from mats_ds.data.loading import prefetch
from mats_ds.data.loading.prefetch import MAX_ATTEMPTS, ClipPrefetcher, Closed, ReadingStuck
from mats_ds.data.video.containers import UnreadableVideo


@dataclass
class Clip:
    name: str
    num_bytes: int = 100


def draw(position: int, attempt: int) -> ClipSpec:
    """Attempt 1 of position 3 reads the file "3.1"."""
    return ClipSpec(f"{position}.{attempt}", 10 * position + attempt, 1, 1, 0.0, attempt=attempt)


def look_ahead(read, **options) -> ClipPrefetcher:
    return ClipPrefetcher(read, **{"spec_of": draw, "num_workers": 2, "timeout_seconds": 10.0, **options})


@pytest.mark.parametrize("num_workers", [0, 1, 5])
def test_clips_come_in_order_whoever_is_faster(num_workers):
    def read(spec, on_cpu):
        time.sleep(0.02 if spec.path == "0.0" else 0.0)
        return Clip(spec.path)

    ahead = look_ahead(read, num_workers=num_workers)
    requests = [ahead.ask(position) for position in range(6)]
    assert [ahead.wait(request).clip.name for request in requests] == [f"{position}.0" for position in range(6)]
    assert all(not request.failures for request in requests)
    ahead.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_followed_by_substitutes_and_at_last_by_nothing(num_workers):
    def read(spec, on_cpu):
        if spec.path in ("0.0", "0.1") or spec.path.startswith("1."):
            raise UnreadableVideo(f"no good {spec.path}")
        return Clip(spec.path)

    ahead = look_ahead(read, num_workers=num_workers)
    first, second = (ahead.ask(position) for position in range(2))
    assert (ahead.wait(first).clip.name, first.attempt, first.spec.sample) == ("0.2", 2, 2)
    assert [(bad.path, bad.sample, bad.reason) for bad in first.failures] == [
        ("0.0", 0, "no good 0.0"),
        ("0.1", 1, "no good 0.1"),
    ]
    assert (ahead.wait(second).clip, second.attempt, len(second.failures)) == (None, MAX_ATTEMPTS, MAX_ATTEMPTS)
    ahead.close()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_read_that_hangs_becomes_a_bad_clip(num_workers):
    release = threading.Event()

    def read(spec, on_cpu):
        if spec.path in ("1.0", "2.0", "2.1"):
            release.wait(60)
        return Clip(spec.path)

    ahead = look_ahead(read, num_workers=num_workers, timeout_seconds=0.3)
    begun = time.monotonic()
    requests = [ahead.ask(position) for position in range(5)]
    names = [ahead.wait(request).clip.name for request in requests]
    assert names == ["0.0", "1.1", "2.2", "3.0", "4.0"]
    assert [bad.reason for bad in requests[2].failures] == ["not read within 0.3 s"] * 2
    assert time.monotonic() - begun < 30  # the reads that hang take a minute

    # As long as it hangs, the file is refused at once instead of costing another thread.
    again = ahead.wait(ahead.ask(1))
    assert again.clip.name == "1.1" and again.failures[0].reason == "an earlier read of it still hangs"
    release.set()
    deadline = time.monotonic() + 30
    while ahead._hanging and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ahead.wait(ahead.ask(1)).clip.name == "1.0"  # the file answers again
    ahead.close()


def test_reads_that_never_return_are_replaced_up_to_a_bound_and_then_end_the_run(monkeypatch):
    monkeypatch.setattr(prefetch, "MAX_HANGING", 3)
    release = threading.Event()

    def read(spec, on_cpu):
        if spec.attempt == 0 and spec.path != "4.0":
            release.wait(20)
        return Clip(spec.path)

    before = threading.active_count()
    ahead = look_ahead(read, timeout_seconds=0.2)
    requests = [ahead.ask(position) for position in range(6)]
    names = [ahead.wait(request).clip.name for request in requests[:3]]
    assert names == ["0.1", "1.1", "2.1"]  # each hangs once, and a substitute takes its place
    assert threading.active_count() - before <= 3 + 2
    with pytest.raises(ReadingStuck, match=r"4 videos not read within 0.2 s, and still hanging: .*3\.0.*start the run again"):
        for request in requests[3:]:
            ahead.wait(request)
    release.set()
    ahead.close()


def test_a_fault_of_the_program_is_not_taken_for_a_bad_file():
    def read(spec, on_cpu):
        raise ZeroDivisionError("a bug")

    ahead = look_ahead(read)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        ahead.wait(ahead.ask(0))
    ahead.close()


def test_what_is_read_ahead_stays_within_its_bytes():
    read_paths = []

    def read(spec, on_cpu):
        read_paths.append(spec.path)
        return Clip(spec.path, num_bytes=100)

    ahead = look_ahead(read, max_held_bytes=250)
    requests = [ahead.ask(position) for position in range(20)]
    deadline = time.monotonic() + 30
    while len(read_paths) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # as long as it would take to read too many
    assert 3 <= len(read_paths) <= 4  # 250 bytes and one more for the second worker
    # a chunk may need more than the limit at once: what is waited for is read in any case
    for request in requests:
        assert ahead.wait(request).clip is not None
    for request in requests:
        ahead.release(request)
    assert ahead._held_bytes == 0
    ahead.close()


def test_asking_first_comes_first():
    begun, gate, order = threading.Event(), threading.Event(), []

    def read(spec, on_cpu):
        begun.set()
        gate.wait(30)
        order.append((spec.path, on_cpu))
        return Clip(spec.path)

    ahead = look_ahead(read, num_workers=1)
    late = [ahead.ask(position) for position in range(3)]
    assert begun.wait(30)
    urgent = ahead.ask(9, attempt=2, on_cpu=True, first=True)
    gate.set()
    ahead.wait(urgent)
    ahead.wait(late[-1])
    assert order[:2] == [("0.0", False), ("9.2", True)]
    ahead.close()


def test_close_ends_the_threads_and_whoever_waits():
    stay = threading.Event()

    def read(spec, on_cpu):
        stay.wait(1.0)
        return Clip(spec.path)

    ahead = look_ahead(read)
    requests = [ahead.ask(position) for position in range(8)]
    threading.Timer(0.2, ahead.close).start()
    with pytest.raises(Closed):
        ahead.wait(requests[-1])
    stay.set()
    for thread in ahead._threads:
        thread.join(5)
        assert not thread.is_alive()
