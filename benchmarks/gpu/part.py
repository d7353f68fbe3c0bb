"""The common half of every part of the GPU benchmark: arguments, clock, and the result written
after every figure.

A part is a program of its own, so that its failure is its own. It rewrites its JSON file after each
figure: where it is stopped, what it has is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

OK, MISSED, NEEDS_GPU, LEFT_OUT = "ok", "MISSED", "needs a GPU", "left out"


@dataclass
class Line:
    """One line of the table: what was measured, the figure as text, and the verdict on its goal
    ("": it has none)."""

    what: str
    figure: str
    verdict: str = ""


@dataclass
class Part:
    """A part while it runs. `lines`: for people. `cells`: all figures. `missing`: packages that it
    could have used."""

    name: str
    path: Path
    device: str
    quick: bool
    ends_seconds: float
    videos: str = ""
    lines: list[Line] = field(default_factory=list)
    cells: list[dict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    finished: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def seconds_left(self) -> float:
        return self.ends_seconds - time.monotonic()

    def add_line(self, what: str, figure: str, verdict: str = "") -> None:
        """Add a line, show it, and write the file."""
        self.lines.append(Line(what, figure, verdict))
        print(f"{self.name:14} {what}: {figure}" + (f"  [{verdict}]" if verdict else ""), flush=True)
        self.write()

    def judge(self, what: str, figure: str, *, holds: bool) -> None:
        """A line with a goal, which only a GPU can meet or miss."""
        self.add_line(what, figure, (OK if holds else MISSED) if self.on_gpu else NEEDS_GPU)

    def add(self, **cell: object) -> dict:
        """Keep the figures of one measurement."""
        self.cells.append(cell)
        self.write()
        return cell

    def lacks(self, *packages: str) -> list[str]:
        """Which of these packages cannot be imported; they are remembered as missing."""
        absent = [name for name in packages if not _is_installed(name)]
        self.missing += [name for name in absent if name not in self.missing]
        return absent

    def write(self) -> None:
        tree = {key: value for key, value in asdict(self).items() if key not in ("path", "ends_seconds")}
        aside = self.path.with_name(f".{self.path.name}.part")
        aside.write_text(json.dumps(tree, indent=1, default=str) + "\n", encoding="utf-8")
        aside.replace(self.path)

    def finish(self) -> int:
        self.finished = True
        self.write()
        return 0


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def begin_part(name: str, arguments: list[str] | None = None) -> Part:
    """The part as its arguments ask for it; its file is there from now on."""
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    parser.add_argument("--part", default=name, help="name of the part, where a program has several")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin nothing new after that long")
    parser.add_argument("--videos", default="", help="a folder of real clips")
    options = parser.parse_args(arguments)
    part = Part(options.part, options.out, options.device, options.quick, time.monotonic() + options.seconds, options.videos)
    part.write()
    return part
