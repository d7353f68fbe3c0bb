"""DeepSpeed's CSV monitor: which files of its folder are its own, and how a resumed run goes on in
them.

It appends to one file per event name (`mats/loss`: mats_loss.csv with the header
`step,loss`), and writes the header again whenever it starts. A file of one of these names that does
not begin so belongs to another program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import describe_wrong_kind, open_regular, replace_file

OUR_EVENTS = (
    *("mats/loss", "mats/learning_rate", "mats/grad_norm", "mats/clips_per_second"),
    *("mats/waiting_for_data_share", "mats/memory_gib"),
)
# DeepSpeed 0.19's own, in runtime/engine.py; the times are written under wall_clock_breakdown.
DEEPSPEED_EVENTS = (
    *("Train/Samples/train_loss", "Train/Samples/lr", "Train/Samples/loss_scale"),
    *(
        f"Train/Samples/elapsed_time_ms_{part}"
        for part in ("forward", "backward", "backward_inner", "backward_allreduce", "step")
    ),
)
MAX_DIGITS = 18  # of a number of clips
HEADERS = {name.replace("/", "_"): f"step,{name.rpartition('/')[2]}" for name in (*OUR_EVENTS, *DEEPSPEED_EVENTS)}


def name_foreign_file(folder: Path) -> str | None:
    """A file of the folder that the monitor would append to and that is not its own, and what it
    is; None without one."""
    for stem in HEADERS:
        file = folder / f"{stem}.csv"
        if kind := describe_wrong_kind(file):
            return f"{file} is {kind}"
        if file.exists() and not is_own(file):
            return f"{file} does not begin with the line {HEADERS[stem]!r}"
    return None


def is_own(file: Path) -> bool:
    """Whether a regular file was begun by the monitor, or is empty."""
    header = HEADERS[file.stem].encode()
    with open_regular(file) as stream:
        line = stream.readline(len(header) + 2)
        return not line or line.rstrip(b"\r\n") == header


def continue_csv(monitor: Any, *, clips: int) -> None:
    """Have DeepSpeed's CSV monitor go on after `clips` clips in the files that it left: what a
    resumed run does again goes, and no second header comes in between. (TensorBoard and the others
    draw the newer of two values by themselves.)

    Only rows after the last header of a file are looked at: those before are of earlier runs. Other
    files stay as they are.
    """
    for stem, header in HEADERS.items():
        file = Path(monitor.log_dir) / f"{stem}.csv"
        if describe_wrong_kind(file) is not None or not file.exists() or file.stat().st_size == 0 or not is_own(file):
            continue
        with open_regular(file) as stream:
            lines = stream.read().splitlines(keepends=True)
        begin = max(number for number, line in enumerate(lines) if line.rstrip(b"\r\n") == header.encode()) + 1
        kept = [line for line in lines[begin:] if _clips_of(line) <= clips]
        if kept != lines[begin:]:
            with replace_file(file) as aside:
                aside.write_bytes(b"".join([*lines[:begin], *kept]))
        monitor.filenames.append(stem)


def _clips_of(line: bytes) -> float:
    """The clips at which a row was written; infinite for a row that was not finished, or that no
    run can have written."""
    number = line.partition(b",")[0]
    is_row = number.isdigit() and len(number) <= MAX_DIGITS and line.endswith(b"\n")
    return int(number) if is_row else float("inf")
