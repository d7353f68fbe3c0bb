"""A copy of launch.sh and what it runs in a folder of its own, with stand-ins for the programs of
the machine."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GPU_LINE = "GPU {0}: NVIDIA H100 80GB HBM3 (UUID: GPU-{0}{0}{0}{0}-aa)"


def write_program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Project:
    """The copy, a PATH and an environment; commands are only printed unless MATS_DRY_RUN is
    empty."""

    def __init__(self, folder: Path, *, root: str = "a project", caller: str = "the caller"):
        self.root, self.tools, self.caller = folder / root, folder / "tools", folder / caller
        for path in (self.root, self.tools, self.caller):
            path.mkdir()
        for name in ("launch.sh", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        shutil.copytree(ROOT / "ds_configs", self.root / "ds_configs")
        package = self.root / "mats_ds"
        package.mkdir()
        for path in [*(ROOT / "mats_ds").glob("*.py"), ROOT / "mats_ds" / "commands.txt"]:
            shutil.copy(path, package)
        for room in ("core", "distributed"):
            shutil.copytree(ROOT / "mats_ds" / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
        self.environment = {"PATH": f"{self.tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "MATS_DRY_RUN": "1"}
        self.environment["MATS_PYTHON"] = sys.executable
        self.put_driver(None)

    def put_driver(self, cuda: str | None, gpus: int = 0) -> None:
        """A stand-in for nvidia-smi; None: one that finds no driver."""
        listed = "\n".join(GPU_LINE.format(index) for index in range(gpus))
        header = f"| NVIDIA-SMI 999.9    Driver Version: 999.9    CUDA Version: {cuda} |"
        body = "exit 9" if cuda is None else f'[ "$1" = -L ] && echo "{listed}" || echo "{header}"'
        write_program(self.tools / "nvidia-smi", body)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(self.root / "launch.sh"), *arguments],
            cwd=self.caller,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def plan(self, *arguments: str, **environment: str) -> list[list[str]]:
        """The commands that it would run, as lists of words."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("+ ")]


def wait_for(is_so, process: subprocess.Popen | None = None, seconds: float = 240) -> None:
    """Return when `is_so()` holds; fail after `seconds`, or when the process has ended."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
