"""The files and services that a DeepSpeed JSON makes DeepSpeed write to: logged at the start, and
refused where another program's file would be overwritten.

DeepSpeed opens these files itself, with the user's rights and without asking: a JSON of other
people is to be trusted like a script. docs/reference/deepspeed.md lists every key that reaches
beyond the process. Relative paths start from the folder that the run is started in, also where the
run folder is another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import WrongKindOfFile, open_regular
from mats_ds.core.storage.package_files import check_packages
from mats_ds.training.csv_monitor import name_foreign_file

# the package that it needs
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml", "csv_monitor": None}
JOB_NAME = "DeepSpeedJobName"  # DeepSpeed's own where the JSON names none
FLOPS_MARK = b"DeepSpeed Flops Profiler"  # in the first line of text that it writes
HEAD_BYTES = 200


def name_outputs(ds_config: Mapping[str, Any]) -> list[str]:
    """One line for everything that DeepSpeed writes or sends outside of the run folder, with
    absolute paths."""
    lines = []
    for key in ("tensorboard", "csv_monitor"):
        if _is_on(ds_config, key):
            lines.append(f'"{key}" in the DeepSpeed JSON: DeepSpeed writes into {monitor_folder(ds_config[key])}')
    if _is_on(ds_config, "wandb"):
        project = ds_config["wandb"].get("project", "deepspeed")
        lines.append(
            f'"wandb" in the DeepSpeed JSON: the figures are sent to the project {project!r}, and kept below {Path.cwd()}'
        )
    if _is_on(ds_config, "comet"):
        project = ds_config["comet"].get("project")
        lines.append(f'"comet" in the DeepSpeed JSON: the figures are sent to the project {project!r}, or kept for comet_ml')
    if (path := flops_file(ds_config)) is not None:
        lines.append(f'"flops_profiler" in the DeepSpeed JSON: DeepSpeed writes {path}, over what an earlier profile left there')
    return lines


def check_outputs(ds_config: Mapping[str, Any]) -> None:
    """Raises ValueError for a monitor that cannot start here, where DeepSpeed would fail on rank 0
    alone while the others wait, and for an output that would overwrite or extend a file of another
    program. Writes nothing.
    """
    for key, package in MONITORS.items():
        if _is_on(ds_config, key) and package is not None:
            check_packages(f'"{key}" in the DeepSpeed JSON', package)
    for key in ("tensorboard", "csv_monitor"):
        if _is_on(ds_config, key):
            _check_folder(monitor_folder(ds_config[key]), f'"{key}" in the DeepSpeed JSON cannot write to its output_path')
    if _is_on(ds_config, "csv_monitor"):
        foreign = name_foreign_file(monitor_folder(ds_config["csv_monitor"]))
        if foreign is not None:
            raise ValueError(f"{foreign}, and csv_monitor of the DeepSpeed JSON would write into it: give another job_name")
    if (path := flops_file(ds_config)) is not None:
        _check_folder(path.parent, "flops_profiler.output_file in the DeepSpeed JSON cannot be written")
        _check_flops_file(path)


def monitor_folder(section: Mapping[str, Any]) -> Path:
    """The folder of a monitor, as DeepSpeed puts it together: output_path, then job_name."""
    return _resolve(os.path.join(section.get("output_path", ""), section.get("job_name", JOB_NAME)))


def flops_file(ds_config: Mapping[str, Any]) -> Path | None:
    """The file of the FLOP profiler; None where it is off or prints to the terminal."""
    name = ds_config["flops_profiler"].get("output_file") if _is_on(ds_config, "flops_profiler") else None
    if not name:
        return None
    folder, leaf = os.path.split(name)
    # a link of the file's own name is refused, and not followed
    return _resolve(folder, _refuse_no_name(leaf))


def _resolve(folder: str, leaf: str = "") -> Path:
    """The path that the system opens: `link/..` is above the folder that the link leads to, and not
    where the link is."""
    return Path(os.path.realpath(_refuse_no_name(folder)), leaf)


def _refuse_no_name(text: str) -> str:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"the DeepSpeed JSON names a file {text!r:.100}, which none can be called: give another name")
    return text


def _is_on(ds_config: Mapping[str, Any], key: str) -> bool:
    section = ds_config.get(key)
    return isinstance(section, Mapping) and section.get("enabled", False) is True


def _check_folder(folder: Path, what: str) -> None:
    """Raises ValueError where a folder is not there and could not be made, or could not be written
    to."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name too long, or a folder above that may not be entered
        raise ValueError(f"{what}: {error}") from None
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise ValueError(f"{what}: {existing}: Not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: {existing}: Permission denied")


def _check_flops_file(path: Path) -> None:
    """Raises ValueError for a file that DeepSpeed's profiler would overwrite and did not write."""
    key = "flops_profiler.output_file in the DeepSpeed JSON"
    try:
        with open_regular(path) as stream:
            head = stream.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{key} cannot be written: {error}") from None
    except WrongKindOfFile as error:
        raise ValueError(f"{key}: {error}") from None
    if head and FLOPS_MARK not in head:
        raise ValueError(f"{key} is {path}, which holds no profile, and DeepSpeed would overwrite it: give another name")
