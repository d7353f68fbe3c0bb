"""Files that come with the project: recipes, DeepSpeed's JSON, budgets, in a checkout or in a
wheel.

In a checkout two of the folders lie where users type their names; setup.py puts them into the
wheel.
"""

from __future__ import annotations

from pathlib import Path

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
