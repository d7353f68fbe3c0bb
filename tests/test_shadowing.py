"""A folder `mats_ds` where a user stands, as `git clone` names it: the package is found all the
same, installed in either way or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mats_ds

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
NO_CACHE = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`home`, which holds a clone called mats_ds, and `results`, which holds a folder of that name
    without code."""
    here = tmp_path_factory.mktemp("shadowing")
    clone = here / "home" / "mats_ds"
    clone.mkdir(parents=True)
    for name in ("__init__.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("mats_ds", "ds_configs", "profiling/budgets"):
        shutil.copytree(ROOT / name, clone / name, ignore=NO_CACHE)
    (here / "results" / "mats_ds").mkdir(parents=True)
    (here / "results" / "mats_ds" / "accuracy.txt").write_text("91.3\n")
    return here


@pytest.fixture(scope="module")
def pythons(folders) -> dict[str, Path]:
    """A Python for each way of installing the clone: into the environment's folder of packages goes
    what an installer would put there."""
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    clone = folders / "home" / "mats_ds"
    subprocess.run([sys.executable, "-c", code, folders], cwd=clone, check=True, capture_output=True)
    (editable,) = folders.glob("*.whl")
    found = {}
    for way in ("editable", "wheel", "none"):
        venv.create(folders / way, symlinks=True, with_pip=False)
        (site,) = (folders / way).glob("lib/python*/site-packages")
        if way == "editable":
            zipfile.ZipFile(editable).extractall(site)
        elif way == "wheel":
            shutil.copytree(clone / "mats_ds", site / "mats_ds")
        found[way] = folders / way / "bin" / "python"
    return found


def run_python(python: Path, *arguments: str, folder: Path) -> str:
    """What a Python prints that knows nothing of this checkout."""
    done = subprocess.run([python, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("stand", ["home", "home/mats_ds", "results", "."])
@pytest.mark.parametrize("way", ["editable", "wheel", "none"])
def test_the_package_is_found_whatever_folder_lies_there(folders, pythons, way, stand):
    if way == "none" and not stand.startswith("home"):
        pytest.skip("there is no package to find")
    python, folder, clone = pythons[way], folders / stand, folders / "home" / "mats_ds"
    # where a checkout stands it comes first, as for every package
    site = folders / "wheel" if way == "wheel" and stand != "home/mats_ds" else clone
    assert run_python(python, "-m", "mats_ds", "--version", folder=folder) == f"mats {mats_ds.__version__}"
    code = "import mats_ds; from mats_ds.core.text import say; print(mats_ds.__file__, mats_ds.__spec__.origin, say.__module__)"
    *files, module = run_python(python, "-c", code, folder=folder).split()
    assert all(Path(file).is_relative_to(site) and Path(file) != clone / "__init__.py" for file in files)
    assert module == "mats_ds.core.text"


def test_an_incomplete_clone_says_so(folders, pythons, tmp_path):
    (tmp_path / "mats_ds").mkdir()
    shutil.copy(ROOT / "__init__.py", tmp_path / "mats_ds")
    command = [pythons["none"], "-c", "import mats_ds"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and f"ImportError: {tmp_path / 'mats_ds'} " in done.stderr


def test_pytest_runs_in_a_clone_of_that_name(folders):
    """It imports the file in the clone's folder as well."""
    clone = folders / "home" / "mats_ds"
    (clone / "tests").mkdir()
    text = "import mats_ds\n\ndef test_names():\n    assert mats_ds.__all__ and mats_ds.step_flops\n"
    (clone / "tests" / "test_names.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for folder in (clone, clone.parent):
        done = subprocess.run([*command, clone / "tests"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
