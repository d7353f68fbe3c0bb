"""StepRecord, one step of one rank as one line of JSON, and the writer of such lines.

`<run_dir>/records/rank-00000.jsonl` holds one line per finished step of that rank. The file only
ever grows: a resumed run appends to it, and `record_reader.py` finds the lines that still count.
Numbers that JSON cannot hold are the strings "nan", "inf", "-inf"; null stands for what was not
measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from mats_ds.core.limits import MAX_FLOAT, limits_of, show
from mats_ds.core.run_dir import SCHEMA
from mats_ds.core.storage.documents import NESTED
from mats_ds.core.storage.files import append_text, open_regular, open_to_append, refuse_wrong_kind
from mats_ds.core.storage.folder_watch import FileWatch

MAY_BE_NON_FINITE = ("loss", "learning_rate", "grad_norm")
MAX_LINE_BYTES = 2**14  # our own lines have about 900
RECORDS_FOLDER = "records"


@dataclass(slots=True)
class StepRecord:
    """The record of one rank's optimizer step. None: not measured, for example every GPU figure of
    a run on a CPU.

    Peaks of torch's allocator (`peak_*`) are of this step alone; `peak_rss_bytes` is since the
    process started. `nvml_*` are the device's latest sample, at most about a second old, and count
    every process on it. `kept`, `visible` and `targets` are tokens of one clip out of `num_tokens`.
    FLOPs are of this rank's clips of the step, forward and backward; hardware FLOPs include what is
    computed twice to save memory. `mfu` and `hfu` are model and hardware FLOP/s over the GPU's
    peak. `joules` are the GPU's since the record before. `peak_active_bytes` adds to the allocated
    ones what is freed but still in use by another stream; `peak_inactive_bytes` are free pieces
    that a part of their block in use keeps from being given back (fragmentation).
    `activation_bytes` is the allocated peak less what is static and the clips.
    """

    schema: int
    step: int
    epoch: int
    rank: int
    unix_seconds: float
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    num_clips: int
    num_substitutes: int
    num_bad_clips: int
    num_bad_clips_total: int
    data_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    total_seconds: float
    clips_per_second: float
    kept: int
    visible: int
    targets: int
    num_tokens: int
    model_flops: int
    hardware_flops: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    num_alloc_retries: int | None = None
    num_ooms: int | None = None
    nvml_used_bytes: int | None = None
    nvml_utilization_percent: float | None = None
    nvml_power_watts: float | None = None
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    peak_active_bytes: int | None = None
    peak_inactive_bytes: int | None = None
    clip_bytes: int | None = None
    activation_bytes: int | None = None
    joules: float | None = None
    mfu: float | None = None
    hfu: float | None = None

    @property
    def memory_bytes(self) -> int:
        """The one figure to show: torch's reserved peak of this step on a GPU, the process's
        resident memory on a CPU."""
        return self.peak_reserved_bytes if self.peak_reserved_bytes is not None else self.rss_bytes or 0

    @property
    def memory_name(self) -> str:
        """The meaning of `memory_bytes`, in words."""
        return "host RSS" if self.peak_reserved_bytes is None else "GPU reserved peak"

    @property
    def device_peak_bytes(self) -> int:
        """The peak that a memory budget is judged by: on a GPU the larger of torch's reserved peak
        and NVML's used bytes (which adds the CUDA context and NCCL's buffers), on a CPU the
        process's peak resident memory."""
        if self.peak_reserved_bytes is None:
            return self.peak_rss_bytes or self.rss_bytes or 0
        return max(self.peak_reserved_bytes, self.nvml_used_bytes or 0)


_JSON_TYPES = {
    "int": int,
    "float": (int, float),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
_DECODER = json.JSONDecoder()
_NAMES = tuple(field.name for field in fields(StepRecord))
_TYPES = tuple(_JSON_TYPES[str(field.type)] for field in fields(StepRecord))
_ROUNDED = frozenset(name for name in _NAMES if name.endswith(("_seconds", "_per_second")) or name in ("joules", "mfu", "hfu"))
_NON_FINITE_INDICES = tuple(_NAMES.index(name) for name in MAY_BE_NON_FINITE)
_LIMITS = {
    _NAMES.index(field.name): limits_of(field.name, str(field.type))
    for field in fields(StepRecord)
    if field.name not in MAY_BE_NON_FINITE
}


def dump_record(record: StepRecord) -> str:
    """The record as one line of valid JSON, without the line's end."""
    tree = {name: getattr(record, name) for name in _NAMES}
    for name, value in tree.items():
        if isinstance(value, float):
            tree[name] = round(value, 6) if name in _ROUNDED else value
            if not math.isfinite(value):
                tree[name] = str(value)
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)


def parse_record(line: str | bytes) -> StepRecord:
    """The record of one line. Keys that this version does not know are ignored.

    Raises ValueError with what is wrong with the line.
    """
    text = line if isinstance(line, str) else line.decode()
    try:
        # json.loads does the same in about 1.4 times the time
        tree, end = _DECODER.raw_decode(text)
    except RecursionError:
        raise ValueError(NESTED) from None
    if text[end:].strip():
        raise ValueError(f"more than one JSON value: {text[end:][:20]!r}")
    if not isinstance(tree, dict):
        raise ValueError(f"expected a JSON object, got {type(tree).__name__}")
    values = list(map(tree.get, _NAMES))
    if isinstance(values[0], int) and values[0] > SCHEMA:
        raise ValueError(f"schema {show(values[0])}, but this version reads up to {SCHEMA}: update mats_ds")
    for index in _NON_FINITE_INDICES:
        if isinstance(values[index], str):
            values[index] = _read_float(values[index])
    # a bool is an int to Python
    if not all(map(isinstance, values, _TYPES)) or bool in map(type, values):
        pairs = zip(_NAMES, values, _TYPES, strict=True)
        wrong = [name for name, value, kind in pairs if not isinstance(value, kind) or isinstance(value, bool)]
        raise ValueError(f"missing or of the wrong type: {', '.join(wrong)}")
    for index, (least, greatest) in _LIMITS.items():
        value = values[index]
        if value is not None and not least <= value <= greatest:
            raise ValueError(f"{_NAMES[index]} is {show(value)}, which is not from {least:g} to {greatest:g}")
    for index in _NON_FINITE_INDICES:
        value = values[index]
        # beyond what a loss is computed in: as good as infinite
        if value is not None and abs(value) > MAX_FLOAT:
            values[index] = math.copysign(math.inf, value)
    return StepRecord(*values)


def _read_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"could not convert string to float: {text[:20]!r}") from None


class RecordWriter:
    """Appends one rank's records to its file, each line with a single write.

    The run folder must exist: it is not made again where somebody has removed it. Raises OSError,
    and ValueError where a link has the name of the file or of its folder.
    """

    def __init__(self, run_dir: str | Path, *, rank: int) -> None:
        run_dir = Path(run_dir)
        self.path = run_dir / RECORDS_FOLDER / f"rank-{rank:05d}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        refuse_wrong_kind(self.path, below=run_dir)
        torn = _ends_in_mid_line(self.path)
        self._file = open_to_append(self.path)
        self._watch = FileWatch(self.path, self._file.fileno(), folder=run_dir)
        if torn:
            append_text(self._file, "\n")

    def append(self, record: StepRecord) -> None:
        append_text(self._file, dump_record(record) + "\n")

    def what_is_lost(self) -> str | None:
        """The reason that records no longer reach the disk; None while they do, and once the file
        is closed."""
        return None if self._file.closed else self._watch.what_is_lost()

    def close(self) -> None:
        self._file.close()


def _ends_in_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open_regular(path) as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
