from __future__ import annotations

import io

from mats_ds.data.prepare.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with Progress("check", terminal) as progress:
        for num_done in range(4):
            progress(num_done, 3, num_done // 2)
    assert "3/3" in terminal.getvalue() and "file/s, 1 bad" in terminal.getvalue()


def test_elsewhere_lines_come_now_and_then(monkeypatch):
    clock = {"seconds": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock["seconds"])
    stream = io.StringIO()
    with Progress("check", stream) as progress:
        for num_done in range(2, 9):
            progress(num_done, 9, 1)
            clock["seconds"] += 6
    assert stream.getvalue().splitlines() == [
        "check: 2 of 9 files need no work: an earlier run did it, or they do not exist",
        "check: 4 of 9 files, 1 bad, 0.2 files/s; time left: measured after a few files",
        "check: 6 of 9 files, 1 bad, 0.2 files/s; about 18 s left",
        "check: 8 of 9 files, 1 bad, 0.2 files/s; about 6 s left",
    ]
