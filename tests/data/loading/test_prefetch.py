"""Clips come in the order asked for; what fails, hangs or crashes is replaced; memory and processes
stay bounded, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mats_ds.core.workers import WorkersFailed
from mats_ds.data.loading import given_up, template
from mats_ds.data.loading.given_up import ReadingStuck
from mats_ds.data.loading.prefetch import MAX_ATTEMPTS, ClipPrefetcher, Closed
from mats_ds.data.loading.readers import TASKS_AHEAD
from tests.data.loading import fake_reading
from tests.data.loading.fake_reading import LARGE, Ends, spec_of

ROOT = Path(__file__).resolve().parents[3]


def look_ahead(read, **options) -> ClipPrefetcher:
    return ClipPrefetcher(read, **{"spec_of": spec_of, "num_workers": 2, "timeout_seconds": 60.0, **options})


@pytest.fixture
def ahead_of():
    """`ahead_of(read, ...)`: a prefetcher that is closed after the test."""
    opened = []

    def open_one(read, **options):
        opened.append(look_ahead(read, **options))
        return opened[-1]

    yield open_one
    for ahead in opened:
        ahead.close()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, *, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def processes_of(ahead: ClipPrefetcher) -> list[int]:
    assert wait_until(lambda: all(reader.process for reader in ahead._pool.readers))
    return [reader.process for reader in ahead._pool.readers]


@pytest.mark.parametrize("num_workers", [0, 1, 5])
def test_clips_come_in_order_whoever_is_faster(ahead_of, num_workers):
    ahead = ahead_of(fake_reading.first_is_slow, num_workers=num_workers)
    requests = [ahead.ask(position) for position in range(6)]
    assert [ahead.wait(request).clip.name for request in requests] == [f"{position}.0" for position in range(6)]
    assert all((request.clip.values == 10 * position).all() for position, request in enumerate(requests))
    assert all(not request.failures for request in requests)


def test_the_caller_reads_by_itself_without_workers_and_others_never_do(ahead_of):
    here, elsewhere = (ahead_of(fake_reading.read_plainly, num_workers=number) for number in (0, 2))
    assert here.wait(here.ask(0)).clip.process == os.getpid()
    assert elsewhere.wait(elsewhere.ask(0)).clip.process in processes_of(elsewhere)


@pytest.fixture
def fresh_template(monkeypatch):
    """No process of other tests, and the one of this test ends with it."""
    monkeypatch.setattr(template, "_current", None)
    yield
    if template._current is not None:
        template._current.close()


def test_readers_load_what_they_need_alone_and_see_no_gpu(ahead_of, fresh_template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("numpy.py", "socket.py", "mats_ds.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user')")
    ahead = ahead_of(fake_reading.list_modules)
    loaded, gpus, _, folder = ahead.wait(ahead.ask(0)).clip
    assert (loaded, gpus, folder) == ([], "", str(tmp_path))


def test_a_limit_on_files_is_none_on_the_memory_that_clips_come_in(ahead_of, fresh_template, file_limit):
    with file_limit(2000):
        ahead = ahead_of(fake_reading.read_plainly)
        clip = ahead.wait(ahead.ask(3)).clip
    assert clip.values.nbytes > 2000 and (clip.values == 30).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_followed_by_substitutes_and_at_last_by_nothing(ahead_of, num_workers):
    ahead = ahead_of(fake_reading.some_are_bad, num_workers=num_workers)
    first, second = (ahead.ask(position) for position in range(2))
    assert (ahead.wait(first).clip.name, first.attempt, first.spec.sample) == ("0.2", 2, 2)
    assert [(bad.path, bad.sample, bad.reason) for bad in first.failures] == [
        ("0.0", 0, "no good 0.0"),
        ("0.1", 1, "no good 0.1"),
    ]
    assert (ahead.wait(second).clip, second.attempt, len(second.failures)) == (None, MAX_ATTEMPTS, MAX_ATTEMPTS)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_read_that_takes_too_long_becomes_a_bad_clip_and_its_process_is_ended(ahead_of, num_workers, how, monkeypatch):
    ahead = ahead_of(Ends({"1.0": how, "2.0": how, "2.1": how}).read, num_workers=num_workers, timeout_seconds=1.5)
    before = processes_of(ahead)
    requests = [ahead.ask(position) for position in range(5)]
    assert [ahead.wait(request).clip.name for request in requests] == ["0.0", "1.1", "2.2", "3.0", "4.0"]
    assert [bad.reason for bad in requests[2].failures] == ["not read within 1.5 s"] * 2
    assert [len(request.failures) for request in requests] == [0, 1, 2, 0, 0], "what waited behind it is not to blame"
    after = processes_of(ahead)
    assert len(after) == num_workers and not any(map(is_running, set(before) - set(after)))

    # For a while the file is refused at once instead of costing another process.
    again = ahead.wait(ahead.ask(1))
    assert again.clip.name == "1.1" and "too long" in again.failures[0].reason
    assert processes_of(ahead) == after
    monkeypatch.setattr(given_up, "RETRY_SECONDS", 0.0)
    assert ahead.wait(ahead.ask(1)).failures[0].reason == "not read within 1.5 s"  # tried again


@pytest.mark.parametrize(
    ("how", "facts"),
    [("crash", ["decoder crashed", "SIGSEGV"]), ("killed", ["was killed", "SIGKILL", "memory"]), ("exit", ["exit status 3"])],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_reader_that_dies_costs_one_clip_and_is_replaced(ahead_of, how, facts, num_workers):
    ahead = ahead_of(Ends({"1.0": how}).read, num_workers=num_workers)
    requests = [ahead.ask(position) for position in range(5)]
    assert [ahead.wait(request).clip.name for request in requests] == ["0.0", "1.1", "2.0", "3.0", "4.0"]
    assert [len(request.failures) for request in requests] == [0, 1, 0, 0, 0]
    (bad,) = requests[1].failures
    assert bad.path == "1.0" and all(fact in bad.reason for fact in facts)
    assert len(processes_of(ahead)) == num_workers
    assert all((request.clip.values == request.spec.sample).all() for request in requests), "read by one that is dead now"


def test_readers_that_are_killed_from_outside_are_replaced_even_with_the_process_that_forks_them(ahead_of):
    ahead = ahead_of(fake_reading.read_plainly)
    for victims in (processes_of, lambda ahead: [ahead._pool._template._process.pid]):
        for process in victims(ahead):
            os.kill(process, signal.SIGKILL)
        # Whoever had a clip at hand lost it; all others are read.
        requests = [ahead.ask(position) for position in range(20)]
        assert all(ahead.wait(request).clip is not None for request in requests)
        assert sum(len(request.failures) for request in requests) <= 2 * len(processes_of(ahead))


def test_many_files_that_take_too_long_end_the_run_with_their_names(ahead_of, monkeypatch):
    monkeypatch.setattr(given_up, "MAX_HANGING", 3)
    ahead = ahead_of(Ends({f"{position}.0": "hang" for position in range(4)}).read, timeout_seconds=0.5)
    requests = [ahead.ask(position) for position in range(6)]
    with pytest.raises(ReadingStuck, match=r"4 videos not read within 0.5 s.*3\.0.*start the run again"):
        for request in requests:
            ahead.wait(request)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_of_the_program_is_not_taken_for_a_bad_file(ahead_of, num_workers):
    ahead = ahead_of(Ends({"0.0": "fault"}).read, num_workers=num_workers)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        ahead.wait(ahead.ask(0))
    if num_workers:
        assert "fake_reading.py" in str(caught.value.__cause__), "where it happened"
    assert ahead.wait(ahead.ask(1)).clip.name == "1.0"


def test_a_function_that_cannot_be_sent_is_refused_at_once():
    with pytest.raises(ValueError, match=r"cannot be sent .* num_workers=0"):
        look_ahead(lambda specs, codecs: [])


def test_readers_that_cannot_start_end_the_run_with_their_reason(ahead_of, fresh_template, monkeypatch):
    monkeypatch.setattr(template, "SERVE", template.SERVE.replace("run_template\n", "run_nothing\n", 1))
    ahead = ahead_of(fake_reading.read_plainly)
    with pytest.raises(WorkersFailed, match=r"do not start \(exit status 1: ImportError: .*run_nothing"):
        ahead.wait(ahead.ask(0))


def test_what_is_read_ahead_stays_within_its_bytes_and_memory_is_used_again(ahead_of):
    room = 5 * LARGE  # memory files are whole pages: four clips of three pages
    ahead = ahead_of(fake_reading.read_plainly, max_held_bytes=room)
    requests = [ahead.ask(position) for position in range(40)]
    assert wait_until(lambda: ahead._held_bytes >= room)
    time.sleep(0.3)  # as long as it would take to read too many
    assert sum(request.done for request in requests) <= 4 + 1 + 2 * TASKS_AHEAD
    # a chunk may need more than the limit at once: what is waited for is read in any case
    for request in requests[:10]:
        assert ahead.wait(request).clip is not None
    for request in requests:
        assert (ahead.wait(request).clip.values == request.spec.sample % 251).all()
        ahead.release(request)
    assert ahead._held_bytes == ahead._num_held == 0
    ahead.wait(ahead.ask(0))
    assert ahead._pool._num_bytes <= room + 4 * LARGE


def test_clips_that_need_a_substitute_get_it_whatever_memory_others_hold(ahead_of):
    """None of those that are awaited may wait for room behind another one."""
    some = {f"{position}.{attempt}": "exit" for position in (4, 5, 6, 7) for attempt in (0, 1)}
    ahead = ahead_of(Ends(some).read, num_workers=2, max_held_bytes=2 * LARGE)
    requests = [ahead.ask(position) for position in range(12)]
    names = [ahead.wait(request).clip.name for request in requests]
    assert names == [f"{position}.{2 if 4 <= position <= 7 else 0}" for position in range(12)]


def test_the_number_of_clips_that_are_held_is_bounded_too(ahead_of, monkeypatch):
    monkeypatch.setattr("mats_ds.data.loading.prefetch.MAX_HELD_CLIPS", 3)
    ahead = ahead_of(fake_reading.read_small)
    requests = [ahead.ask(position) for position in range(30)]
    assert wait_until(lambda: sum(request.done for request in requests) >= 3)
    time.sleep(0.2)
    assert sum(request.done for request in requests) <= 3 + 2 * TASKS_AHEAD
    for request in requests:
        ahead.wait(request)
        ahead.release(request)


def test_memory_of_a_released_clip_is_written_again_and_that_of_others_never(ahead_of):
    ahead = ahead_of(fake_reading.read_sizes, num_workers=2)
    held = {}
    for position in range(200):
        request = ahead.wait(ahead.ask(position))
        held[position] = request
        if position % 3:
            ahead.release(held.pop(position - position % 2, request))
        for other in list(held.values())[-8:]:
            if other.clip is not None:
                assert (other.clip.values == other.spec.sample % 251).all(), other.spec.path
    slots = {id(request.slot) for request in held.values() if request.slot is not None}
    free = [slot for reader in ahead._pool.readers for slot in reader.free]
    assert not slots & {id(slot) for slot in free}
    assert ahead._held_bytes == sum(request.slot.num_bytes for request in held.values() if request.slot is not None)


def test_clips_of_one_video_are_one_task_of_one_process(ahead_of):
    ahead = ahead_of(fake_reading.read_plainly, repeats=3, spec_of=lambda position, attempt=0: spec_of(position // 3, attempt))
    requests = ahead.ask_all(range(9))
    clips = [ahead.wait(request).clip for request in requests]
    assert [clip.name for clip in clips] == [f"{position // 3}.0" for position in range(9)]
    slots = [request.slot for request in requests]
    assert all(slots[position] is slots[position - position % 3] for position in range(9)) and len(set(map(id, slots))) == 3
    held = ahead._held_bytes
    ahead.release(requests[0])
    ahead.release(requests[1])
    assert ahead._held_bytes == held, "the third one is still in use"
    ahead.release(requests[2])
    assert ahead._held_bytes < held and np.all(clips[3].values == 10)


def test_asking_first_comes_before_what_no_reader_has_at_hand(ahead_of, tmp_path):
    gate = tmp_path / "gate"
    ahead = ahead_of(Ends({"0.0": "hang"}, gate=str(gate)).read, num_workers=1)
    late = [ahead.ask(position) for position in range(6)]
    assert wait_until(lambda: len(ahead._queue) == 6 - TASKS_AHEAD)
    urgent = ahead.ask(9, attempt=2, on_cpu=True, first=True)
    assert [*ahead._queue] == [urgent, *late[TASKS_AHEAD:]], "the only reader hangs"
    gate.touch()
    clip = ahead.wait(urgent).clip
    assert (clip.name, clip.on_cpu) == ("9.2", True)
    assert ahead.wait(late[-1]).clip.name == "5.0"


def test_messages_of_readers_are_shown_by_this_process_once(ahead_of, caplog, recwarn):
    ahead = ahead_of(fake_reading.say)
    for request in [ahead.ask(position) for position in range(8)]:
        ahead.wait(request)
    assert [(record.name, record.message) for record in caplog.records] == [("mats_ds", "a shard is broken")]
    assert [str(warning.message) for warning in recwarn] == ["an old file"]


def test_close_ends_the_processes_and_whoever_waits(ahead_of):
    ahead = ahead_of(Ends({"0.0": "hang", "1.0": "stop"}).read)
    processes = processes_of(ahead)
    request = ahead.ask(0)
    ahead.ask(1)
    threading.Timer(0.2, ahead.close).start()
    with pytest.raises(Closed):
        ahead.wait(request)
    ahead._thread.join(20)
    assert not ahead._thread.is_alive() and not any(map(is_running, processes))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_one_that_trains(sent, tmp_path):
    """Busy, hanging or waiting readers, and the one that forks them."""
    code = """
    import time
    from tests.data.loading.fake_reading import Ends, spec_of
    from mats_ds.data.loading.prefetch import ClipPrefetcher
    ahead = ClipPrefetcher(Ends({"1.0": "hang"}).read, spec_of=spec_of, num_workers=3, timeout_seconds=60.0)
    ahead.ask(1)
    ahead.wait(ahead.ask(0))
    while not all(reader.process for reader in ahead._pool.readers): time.sleep(0.01)
    print(ahead._pool._template._process.pid, *[reader.process for reader in ahead._pool.readers], flush=True)
    time.sleep(100)
    """
    code = "\n".join(line[4:] for line in code.splitlines())
    options = dict(env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **options) as parent:
        processes = [int(number) for number in parent.stdout.readline().split()]
        assert len(processes) == 4 and all(map(is_running, processes))
        parent.send_signal(sent)
    assert wait_until(lambda: not any(map(is_running, processes)), seconds=20)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_all_processes_of_a_run_ends_no_reader(ahead_of, name):
    """The run may have a step and a checkpoint to finish."""
    ahead = ahead_of(fake_reading.read_plainly)
    processes = processes_of(ahead)
    for process in (*processes, ahead._pool._template._process.pid):
        os.kill(process, getattr(signal, name))
    requests = [ahead.ask(position) for position in range(8)]
    assert all(not ahead.wait(request).failures for request in requests) and processes_of(ahead) == processes


def test_sixteen_readers_read_sixteen_files_at_once(ahead_of, tmp_path):
    """Nothing that they share is waited for while they read. How much faster that is depends on the
    machine: 15.9 times on an idle one, see benchmarks/results."""
    gate = tmp_path / "gate"
    ahead = ahead_of(Ends({f"{position}.0": "hang" for position in range(16)}, gate=str(gate)).read, num_workers=16)
    requests = ahead.ask_all(range(16))
    assert wait_until(lambda: all(len(reader.tasks) == 1 for reader in ahead._pool.readers))
    gate.touch()
    clips = [ahead.wait(request).clip for request in requests]
    assert len({clip.process for clip in clips}) == 16 and [clip.name for clip in clips] == [f"{n}.0" for n in range(16)]
