"""Terminals, pipes and locales that cannot take what a program prints: the work is done all the
same."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREPARE = [sys.executable, str(ROOT / "mats_ds" / "prepare.py")]


@pytest.fixture
def videos(tmp_path):
    """A folder of two classes, and a list whose last line names a file that is not there."""
    for name in ("größe/a.mp4", "run/b.mp4", "run/c\u00df.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = "größe/a.mp4 0\nrun/b.mp4 1\nrun/cß.mp4 1\nrun/löst.mp4 1\n"
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8")
    return tmp_path


def run(folder, *arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "PYTHONIOENCODING")}
    command = [*PREPARE, *arguments]
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True)


def test_a_terminal_that_cannot_show_a_name(videos):
    done = run(videos, "import", "list.txt", "--root", ".", "--out", "out.csv", PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr  # one file is missing, and nothing else
    assert rb"l\xf6st.mp4" in done.stdout
    assert (videos / "out.csv.classes.txt").read_text(encoding="utf-8") == "größe\nrun\n"
    assert len((videos / "out.csv").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_the_locale_is_named_where_it_is_the_reason(videos, locale):
    variables = {"LC_ALL": locale, "PYTHONUTF8": "0"}
    done = run(videos, "import", "list.txt", "--root", ".", "--out", "out.csv", **variables)
    assert done.returncode == 1 and f"LC_ALL={locale}".encode() in done.stdout and b"PYTHONUTF8=1" in done.stdout
    done = run(videos, "check", "list.txt", "--out", "checked.csv", "--workers", "1", **variables)
    assert done.returncode == 2 and f"LC_ALL={locale}".encode() in done.stderr and b"Traceback" not in done.stderr
    fine = run(videos, "import", "list.txt", "--root", ".", "--out", "out.csv", "--force", LC_ALL=locale)
    # Python's UTF-8 mode, which the C locale switches on
    assert fine.returncode == 1 and b"LC_ALL" not in fine.stdout


def test_a_reader_that_is_gone_ends_nothing(videos):
    with subprocess.Popen(
        [*PREPARE, "import", "list.txt", "--root", ".", "--out", "out.csv"],
        cwd=videos,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1 and said == b""
    assert len((videos / "out.csv").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_behind_the_output_ends_nothing(videos):
    with open("/dev/full", "w") as full:
        command = [*PREPARE, "import", "list.txt", "--root", ".", "--out", "out.csv"]
        assert subprocess.run(command, cwd=videos, stdout=full, stderr=full).returncode == 1
    assert (videos / "out.csv").is_file()


def test_a_log_handler_that_chooses_its_own_stream_is_left_alone():
    code = """
        import logging, sys
        from mats_ds.core.terminal import make_tolerant

        class Own(logging.Handler):
            stream = property(lambda self, first=sys.stderr: first)

        logging.getLogger("theirs").addHandler(Own())
        make_tolerant()
        print("went on")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "went on\n", done.stderr


@pytest.mark.parametrize(
    "name", [path.stem for path in (ROOT / "mats_ds").glob("*.py") if "ArgumentParser(" in path.read_text(encoding="utf-8")]
)
def test_every_program_runs_so(name):
    body, _, end = (ROOT / "mats_ds" / f"{name}.py").read_text(encoding="utf-8").rpartition('if __name__ == "__main__":')
    assert ("run_script(" in body + end or "run_training(" in body) and end.strip().startswith("leave(")


def test_the_notice_that_there_is_no_gpu_is_dropped_and_other_warnings_stay(caplog):
    from mats_ds.core.terminal import drop_notices

    drop_notices()
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(caplog.handler)
    try:
        logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
        logger.warning("MPU is not provided, setting tp size to 1 in checkpoint loading.")
        logger.warning("gradients are not finite")
        logger.error("Setting accelerator to CPU failed")
    finally:
        logger.removeHandler(caplog.handler)
    assert [*dict.fromkeys(caplog.messages)] == ["gradients are not finite", "Setting accelerator to CPU failed"]
