"""Files that come with the project: recipes, DeepSpeed's JSON, budgets, in a checkout or in a
wheel; and how its commands are typed there.

In a checkout two of the folders lie where users type their names; setup.py puts them into the
wheel.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from mats_ds.core.text import quote_word

PACKAGE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = {"ds_configs": "ds_configs", "budgets": "profiling/budgets"}


def find_folder(name: str) -> Path:
    """The folder "recipes", "ds_configs" or "budgets"."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / IN_CHECKOUT[name]


def find_file(source: str | Path, folder: str, *, suffix: str) -> Path | None:
    """The file at that path; else the one in the folder that it names, as `zero2` or
    `ds_configs/zero2.json`; else None.

    folder: as for `find_folder`.
    """
    path = Path(source)
    if path.is_file():
        return path
    is_name = path.suffix == "" and len(path.parts) == 1
    if not is_name and path.parts[-2:-1] != (folder,):
        return None
    shipped = find_folder(folder) / (f"{path}{suffix}" if is_name else path.name)
    return shipped if shipped.is_file() else None


def list_names(folder: str, *, suffix: str) -> list[str]:
    """The names that `find_file` knows in that folder, sorted."""
    return sorted(path.stem for path in find_folder(folder).glob(f"*{suffix}"))


def own_command(verb: str, *words: object) -> str:
    """A command of this project to paste into a shell, such as `mats report runs/k400`: one that
    works in the current folder with the Python that runs now.

    `mats` where that is what the shell finds; in a checkout `bash launch.sh`, by its path from
    here; else that Python's module.
    """
    found = shutil.which("mats")
    if found and Path(found).parent.resolve() == Path(sys.executable).parent.resolve():
        start = ["mats"]
    else:
        start = launch_script() or [sys.executable, "-m", PACKAGE.name]
    return " ".join(map(quote_word, [*start, verb, *words]))


def help_command(prog: str) -> str:
    """The command that shows the help of a program, by argparse's name of it: "mats prepare check"
    or "pretrain.py"."""
    first, *rest = prog.split()
    if first == "mats" and rest:
        return own_command(*rest, "--help")
    if first.endswith(".py") and (PACKAGE / first).is_file():  # as DeepSpeed's launcher starts it
        return own_command(first[: -len(".py")], *rest, "--help")
    return f"{prog} --help"


def launch_script() -> list[str]:
    """The words that run launch.sh from the current folder; none of a wheel, which has no such
    file."""
    launcher = PACKAGE.parent / "launch.sh"
    return ["bash", _path_from_here(launcher)] if launcher.is_file() else []


def _path_from_here(path: Path) -> str:
    """The shorter of the relative and the absolute path."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except OSError:  # the current folder is gone
        return str(path)
