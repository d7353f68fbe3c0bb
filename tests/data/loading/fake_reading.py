"""Functions that stand for reading, for processes that import them by name: a clip is one array,
the name of its file says what happens."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mats_ds.core.clips import ClipSpec
from mats_ds.data.loading.reader import ClipReader, EncodedClip
from mats_ds.data.video.containers import UnreadableVideo

LARGE = 10_000  # values; goes through a memory file


@dataclass
class Clip:
    """What is read of a file: its name, whether for a CPU, and values made of its sample."""

    name: str
    on_cpu: bool
    values: np.ndarray
    process: int


def spec_of(position: int, attempt: int = 0) -> ClipSpec:
    """Attempt 1 of position 3 reads the file "3.1"."""
    return ClipSpec(f"{position}.{attempt}", 10 * position + attempt, 1, 1, 0.0, attempt=attempt, position=position)


def make_clip(spec: ClipSpec, codecs: dict, *, size: int = LARGE) -> Clip:
    return Clip(spec.path, not codecs, np.full(size, spec.sample % 251, np.uint8), os.getpid())


def read_plainly(specs, codecs):
    return [make_clip(spec, codecs) for spec in specs]


def read_small(specs, codecs):
    return [make_clip(spec, codecs, size=10) for spec in specs]


def read_sizes(specs, codecs):
    """Memory of a thousand to a million bytes."""
    return [make_clip(spec, codecs, size=1000 * (1 + spec.position**3 % 1000)) for spec in specs]


def first_is_slow(specs, codecs):
    time.sleep(0.3 if specs[0].path == "0.0" else 0.0)
    return read_plainly(specs, codecs)


def some_are_bad(specs, codecs):
    (spec,) = specs
    if spec.path in ("0.0", "0.1") or spec.path.startswith("1."):
        return [UnreadableVideo(f"no good {spec.path}")]
    return read_plainly(specs, codecs)


@dataclass(frozen=True)
class Ends:
    """Ends or stops its process at some files: how, by the file."""

    how: dict[str, str]
    gate: str = ""

    def read(self, specs, codecs):
        for spec in specs:
            match self.how.get(spec.path):
                case "hang":
                    while not self.gate or not Path(self.gate).exists():
                        time.sleep(0.01)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "crash":
                    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "exit":
                    os._exit(3)
                case "fault":
                    raise ZeroDivisionError("a bug")
        return read_plainly(specs, codecs)


def say(specs, codecs):
    logging.getLogger("mats_ds").warning("a shard is broken")
    warnings.warn("an old file", UserWarning, stacklevel=1)
    return read_plainly(specs, codecs)


def list_modules(specs, codecs):
    loaded = sorted({"deepspeed", "nvidia.dali", "pydantic", "transformers", "pytest"} & set(sys.modules))
    return [(loaded, os.environ.get("CUDA_VISIBLE_DEVICES"), len(os.listdir("/proc/self/task")), os.getcwd()) for _ in specs]


@dataclass(frozen=True)
class FaultyReader(ClipReader):
    """The real reader with faults at some files: it hangs, gives their bytes in reverse to the
    device, or PyAV cannot decode them. At all files: it has a bug."""

    hangs: tuple[str, ...] = ()
    backwards: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    has_bug: bool = False

    def read(self, specs, codecs):
        path = specs[0].path
        if path in self.hangs:
            time.sleep(1000)
        if self.has_bug:
            raise ZeroDivisionError
        if path in self.unreadable and not codecs:
            return [UnreadableVideo("no decoder can do it") for _ in specs]
        clips = super().read(specs, codecs)
        if path not in self.backwards:
            return clips
        return [replace(clip, encoded=clip.encoded[::-1].copy()) if isinstance(clip, EncodedClip) else clip for clip in clips]


@dataclass(frozen=True)
class CountingReader(ClipReader):
    """The real reader, which writes a line to a file for every pass over a video."""

    log: str = ""

    def read(self, specs, codecs):
        with open(self.log, "a") as file:
            file.write(f"{specs[0].path}\n")
        return super().read(specs, codecs)
