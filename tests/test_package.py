"""The wheel, used from another folder: it holds the recipes, answers to its public names, and importing it stays light."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mats_ds

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that the wheel of this tree was unpacked into, built aside so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mats_ds", source / "mats_ds", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"mats_ds-{mats_ds.__version__}-py3-none-any.whl"
    target = folder / "site"
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run_elsewhere(installed: Path, folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_metadata(installed: Path):
    (folder,) = installed.glob("*.dist-info")
    return Parser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_importing_it_elsewhere_loads_nothing_heavy(installed, tmp_path):
    code = "import sys, mats_ds; print(mats_ds.__file__); print({'torch', 'deepspeed', 'nvidia.dali'} & set(sys.modules))"
    place, loaded = run_elsewhere(installed, tmp_path, code).splitlines()
    assert Path(place).is_relative_to(installed)
    assert loaded == "set()"


@pytest.mark.slow
def test_every_recipe_is_inside(installed, tmp_path):
    names = sorted(path.stem for path in (ROOT / "mats_ds" / "recipes").glob("*.yaml"))
    code = f"""
from mats_ds.config.recipe import Recipe, load_recipe
from mats_ds.config.finetune_recipe import FinetuneRecipe
for name in {names}:
    print(load_recipe(name, schema=FinetuneRecipe if name.startswith("finetune_") else Recipe).name)
"""
    assert run_elsewhere(installed, tmp_path, code).split() == names != []


@pytest.mark.slow
def test_every_public_name_loads(installed, tmp_path):
    code = "import mats_ds; print(*(name for name in mats_ds.__all__ if getattr(mats_ds, name) is not None))"
    assert run_elsewhere(installed, tmp_path, code).split() == mats_ds.__all__


@pytest.mark.slow
def test_every_module_of_the_tree_is_inside(installed):
    tree = {path.relative_to(ROOT) for path in (ROOT / "mats_ds").rglob("*") if path.suffix in {".py", ".yaml"}}
    inside = {path.relative_to(installed) for path in (installed / "mats_ds").rglob("*") if path.is_file()}
    assert {path for path in inside if path.suffix != ".pyc"} == tree


@pytest.mark.slow
def test_the_metadata_says_what_it_needs(installed):
    metadata = read_metadata(installed)
    assert metadata["Name"] == "mats-ds"
    assert metadata["Version"] == mats_ds.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.15"}
    assert set(metadata.get_all("Provides-Extra")) == {"cuda12", "cuda13", "test"}
    plain = {re.match(r"[\w.-]+", line).group() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "deepspeed", "av", "pydantic", "nvidia-ml-py"} <= plain
    assert not any(name.startswith("nvidia-dali") for name in plain), "which DALI depends on the driver"
