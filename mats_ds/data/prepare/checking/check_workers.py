"""Checks many files in worker processes: a decoder that crashes or hangs costs one file, never the check.

A worker is a fresh interpreter that reads one path a line (JSON) from its standard input and answers in lines of JSON: "beat"
while frames come, then the facts or the problem. It is killed when it has not been heard for `timeout_seconds`; whoever dies
at a file is replaced, and the file is a bad one. Workers end with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.data.prepare.checking.check_file import FileFacts, check_file
from mats_ds.data.video.indexing import UnreadableVideo

ROOT = str(Path(__file__).resolve().parents[4])
# Our own interpreter without the main module of whoever checks: that may have imported torch.
SERVE = "import sys; sys.path[0] = sys.argv[1]; from mats_ds.data.prepare.checking.check_workers import serve; serve()"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
POLL_SECONDS = 0.5
START_SECONDS = 120.0  # to import numpy and PyAV from a slow disk
DYING_SECONDS = 5.0  # between the end of a worker's answers and its own; dumping its memory may take a while
MAX_DEATHS_AT_START = 3
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """Facts, or the problem. `again`: the machine may be to blame (a crash, a time limit), so a later check tries it again."""

    path: str
    facts: FileFacts | None
    problem: str = ""
    again: bool = False


def check_files(paths: Sequence[str], *, num_workers: int, timeout_seconds: float) -> Iterator[Outcome]:
    """The outcome of every file, as they come. Closing the iterator, or leaving it by an exception, kills all workers.

    Raises RuntimeError with a worker's last words if several cannot even start.
    """
    pool = _Pool(deque(paths), timeout_seconds)
    try:
        for _ in range(min(num_workers, len(paths))):
            pool.start_worker()
        while pool.workers:
            yield from pool.turn()
    finally:
        pool.kill_all()


def worker_command() -> list[str]:
    return [sys.executable, "-c", SERVE, ROOT]


class _Worker:
    """A process, the file it is at (None before it is ready and between files), when it was last heard."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # its standard error, read when it dies
        self.process = subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | ONE_THREAD,
            bufsize=0,
        )
        self.path: str | None = None
        self.is_ready = False
        self.unread = b""
        self.heard_seconds = time.monotonic()

    def silent_seconds(self) -> float:
        return time.monotonic() - self.heard_seconds

    def send(self, path: str) -> None:
        self.process.stdin.write(json.dumps(path).encode() + b"\n")
        self.path, self.heard_seconds = path, time.monotonic()

    def read(self) -> list[dict[str, Any]] | None:
        """The answers that have arrived; None when it is dead."""
        received = os.read(self.process.stdout.fileno(), READ_BYTES)
        if not received:
            return None
        self.heard_seconds = time.monotonic()
        *lines, self.unread = (self.unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, *, grace_seconds: float = 0.0) -> str:
        """Kill it if it still lives after `grace_seconds`; how it ended, with its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        self.process.kill()
        status = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.seek(0)
        words = self.errors.read()[-2000:].decode("utf-8", "replace").split("\n")
        self.errors.close()
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        return _describe_status(status) + (f": {last}" if last else "")


class _Pool:
    """The workers and the files that wait."""

    def __init__(self, waiting: deque[str], timeout_seconds: float) -> None:
        self.waiting = waiting
        self.timeout_seconds = timeout_seconds
        self.num_deaths_at_start = 0
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()

    def start_worker(self) -> None:
        worker = _Worker()
        self.workers.append(worker)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

    def turn(self) -> list[Outcome]:
        """Wait a moment for answers and hand out more files."""
        outcomes = []
        for key, _ in self.selector.select(POLL_SECONDS):
            worker = key.data
            answers = worker.read()
            if answers is None:
                outcomes += self._bury(worker, None)
                continue
            for answer in answers:
                worker.is_ready = True
                if "facts" in answer or "problem" in answer:
                    outcomes.append(_read_answer(worker.path, answer))
                    worker.path = None
            if worker.path is None:
                self._hand_out(worker)
        for worker in list(self.workers):
            limit = self.timeout_seconds if worker.is_ready else max(self.timeout_seconds, START_SECONDS)
            if worker.silent_seconds() > limit:
                outcomes += self._bury(worker, f"given up: no frame came for {self.timeout_seconds:g} s")
        return outcomes

    def _hand_out(self, worker: _Worker) -> None:
        if not self.waiting:
            self._drop(worker)
            worker.end()
            return
        try:
            worker.send(self.waiting[0])
        except OSError:  # it died between two files, which no file is to blame for
            self._drop(worker)
            worker.end()
            self.start_worker()
        else:
            self.waiting.popleft()

    def _bury(self, worker: _Worker, problem: str | None) -> list[Outcome]:
        """Replace a worker that died or, with a `problem`, is to be killed."""
        self._drop(worker)
        ended = worker.end(grace_seconds=0.0 if problem else DYING_SECONDS)
        if not worker.is_ready:
            self.num_deaths_at_start += 1
            if self.num_deaths_at_start >= MAX_DEATHS_AT_START:
                raise RuntimeError(f"the worker processes of the check do not start ({ended})")
        if self.waiting:
            self.start_worker()
        if worker.path is None:
            return []
        happened = "its worker process was killed" if "SIGKILL" in ended else "the decoder crashed on it"
        return [Outcome(worker.path, None, problem or f"{happened} ({ended})", again=True)]

    def _drop(self, worker: _Worker) -> None:
        self.selector.unregister(worker.process.stdout)
        self.workers.remove(worker)

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        self.selector.close()


def _read_answer(path: str, answer: dict[str, Any]) -> Outcome:
    if "problem" in answer:
        return Outcome(path, None, answer["problem"])
    return Outcome(path, facts_from_json(answer["facts"]))


def facts_from_json(fields: dict[str, Any]) -> FileFacts:
    """FileFacts as `dataclasses.asdict` and JSON left them. Raises TypeError when a field is missing or unknown."""
    return FileFacts(**fields | {"warnings": tuple(fields["warnings"])})


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    if status == -signal.SIGKILL:
        return "SIGKILL, perhaps out of memory"
    try:
        return f"signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def serve() -> None:
    """A worker process: answers until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say(ready=True)
    for line in sys.stdin:
        try:
            facts = check_file(json.loads(line), on_beat=lambda: say(beat=True))
        except UnreadableVideo as unreadable:
            say(problem=unreadable.reason)
        else:
            say(facts=dataclasses.asdict(facts))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
