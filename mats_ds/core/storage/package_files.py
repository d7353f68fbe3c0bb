"""Files that come with the project: recipes, DeepSpeed's JSON, budgets, in a checkout or in a
wheel; how its commands are typed there, and how a package that is missing is installed there.

In a checkout two of the folders lie where users type their names; setup.py puts them into the
wheel.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from mats_ds.core.text import quote_word

PACKAGE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = {"ds_configs": "ds_configs", "budgets": "profiling/budgets"}
# the extra of pyproject.toml that brings a package; "" for those of every installation, None for
# those that users install by themselves
EXTRA_OF: dict[str, str | None] = {
    **dict.fromkeys(("torch", "torchvision", "deepspeed", "timm", "einops", "nvidia-ml-py", "pyyaml", "pydantic", "av"), ""),
    **dict.fromkeys(("numpy", "tqdm", "matplotlib", "pillow", "psutil", "safetensors"), ""),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("mkdocs", "mkdocs-material", "mkdocstrings-python"), "docs"),
    **dict.fromkeys(("transformers", "tensorboard", "wandb", "comet_ml"), None),  # in no extra that users install
    "nvidia-dali-cuda130": "cuda13",
    "nvidia-dali-cuda120": "cuda12",
    "scikit-image": "examples",
}
# module -> package, where they differ
PACKAGE_OF = {
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "pydantic_core": "pydantic",
    "material": "mkdocs-material",
    "mkdocstrings_handlers": "mkdocstrings-python",
}


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


def check_packages(what: str, *modules: str) -> None:
    """Raises ValueError, with the command that installs them, where modules that `what` needs are
    not there."""
    missing = [PACKAGE_OF.get(module, module) for module in modules if not is_installed(module)]
    if missing:
        raise ValueError(f"{what} needs {' and '.join(missing)}, which {sys.executable} lacks: {install_command(*missing)}")


def describe_missing(error: BaseException) -> str | None:
    """The package that an import did not find, and the command that installs it; None for any
    other error, that of an installed package which cannot be loaded, too."""
    module = str(getattr(error, "name", None)).partition(".")[0]
    package = PACKAGE_OF.get(module, module)
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRA_OF or is_installed(module):
        return None
    own = PACKAGE.parent / ".venv" / "bin" / "python"  # of launch.sh, where the shell's Python is another
    others = launch_script() and own.is_file() and Path(sys.prefix).resolve() != own.parents[1].resolve()
    instead = f", or run it with {quote_word(_path_from_here(own))}" if others else ""
    return f"{package} is not installed in {sys.executable}: {install_command(package)}{instead}"


def is_installed(module: str) -> bool:
    """Whether it could be imported; nothing is."""
    try:
        return find_spec(module) is not None
    except (ValueError, ModuleNotFoundError):  # loaded without a spec; the package that it is in is not there
        return module in sys.modules


def install_command(*packages: str) -> str:
    """What to type to install packages of EXTRA_OF for the Python that runs now: into the
    environment of launch.sh, or with pip (uv where the environment has none)."""
    extras = sorted({extra for package in packages if (extra := EXTRA_OF[package])})
    script = launch_script()
    is_ours = all(EXTRA_OF[package] is not None for package in packages)
    if script and is_ours and Path(sys.prefix).resolve() == (PACKAGE.parent / ".venv").resolve():
        return " ".join(map(quote_word, [*script, "setup"]))
    if not (is_ours and extras):
        wanted = list(packages)
    elif script:
        wanted = ["-e", f"{_path_from_here(PACKAGE.parent)}[{','.join(extras)}]"]
    else:
        wanted = [f"mats-ds[{','.join(extras)}]"]
    return " ".join(map(quote_word, [*_pip(), *wanted]))


def _pip() -> list[str]:
    found = shutil.which("pip")
    if found and Path(found).parent.resolve() == Path(sys.executable).parent.resolve():
        return ["pip", "install"]
    if is_installed("pip"):
        return [sys.executable, "-m", "pip", "install"]
    return ["uv", "pip", "install", "--python", sys.executable]


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
