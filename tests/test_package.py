"""The wheel, used from another folder: it holds all data files, importing it stays light, and its
command `mats` works."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import mats_ds
from mats_ds.install import BUILDS, EXTRAS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built aside so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("mats_ds", "ds_configs", "profiling/budgets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"mats_ds-{mats_ds.__version__}-py3-none-any.whl"
    return wheel


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder that the wheel was unpacked into."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def command(wheel) -> Path:
    """`mats` of a new environment that the wheel is installed in; the other packages are those of
    the running Python."""
    folder, uv = wheel.parent / "environment", shutil.which("uv")
    make = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    subprocess.run([*make, folder], check=True)
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", python] if uv else [python, "-m", "pip", "install", "--no-index"]
    subprocess.run([*install, "--no-deps", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "mats"


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
    path, loaded = run_elsewhere(installed, tmp_path, code).splitlines()
    assert Path(path).is_relative_to(installed)
    assert loaded == "set()"


@pytest.mark.slow
def test_every_recipe_is_inside(installed, tmp_path):
    names = sorted(path.stem for path in (ROOT / "mats_ds" / "recipes").glob("*.yaml"))
    code = f"""
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
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
def test_every_file_of_the_tree_is_inside(installed):
    def list_files(folder: Path, *kinds: str) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in kinds}

    inside = list_files(installed / "mats_ds", ".py", ".yaml", ".json", ".css", ".txt")
    data = {f"ds_configs/{name}" for name in list_files(ROOT / "ds_configs", ".json")}
    data |= {f"budgets/{name}" for name in list_files(ROOT / "profiling" / "budgets", ".json")}
    assert len(data) >= 10
    assert inside == list_files(ROOT / "mats_ds", ".py", ".yaml", ".json", ".css", ".txt") | data
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["mats_ds"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_works_from_an_empty_folder(command, tmp_path):
    """plan, prepare, two ranks of pretrain, and report, by names of what the wheel holds."""
    from mats_ds.data.synthetic import write_synthetic_set

    write_synthetic_set(tmp_path / "videos", num_videos=8, num_frames=24, height=48, width=80)
    empty = tmp_path / "empty folder"
    empty.mkdir()
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MATS_DRY_RUN", "VIRTUAL_ENV")}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    def mats(*arguments: object, status: int = 0) -> str:
        done = subprocess.run([command, *map(str, arguments)], cwd=empty, env=variables, capture_output=True, text=True)
        assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    assert mats("--version") == f"mats {mats_ds.__version__}\n"
    help_text = mats("plan", "--help")
    assert "plan.py" in help_text.splitlines()[0] or "mats plan" in help_text.splitlines()[0]
    plans = [json.loads(mats("plan", "--recipe", "tiny", "--ds_config", name, "--json")) for name in ("zero2_tiny", "zero2")]
    assert plans[0] != plans[1]
    assert plans[0] == json.loads(mats("plan", "--recipe", "tiny", "--ds_config", "ds_configs/zero2_tiny.json", "--json"))
    mats("prepare", "check", tmp_path / "videos", "--out", "set.csv", "--workers", "1")
    small = ["clip.num_frames=8", "clip.height=32", "clip.width=48", "optim.steps=2", "optim.warmup_steps=1"]
    given = [
        "--recipe",
        "mats_ds/recipes/tiny.yaml",
        "--ds_config",
        "zero2_tiny",
        "data.manifest=set.csv",
        "optim.global_batch=4",
    ]
    mats("pretrain", "--out", "run", *given, *small)
    assert len(list((empty / "run" / "records").iterdir())) == 2, "two ranks"
    tree = json.loads(mats("report", "run", "--budget", "8xa100-40g", "--json"))
    assert tree and (empty / "run" / "report.html").stat().st_size > 10_000
    mats("reprot", status=2)


@pytest.mark.slow
def test_the_metadata_says_what_it_needs(installed):
    metadata = read_metadata(installed)
    assert metadata["Name"] == "mats-ds"
    assert metadata["Version"] == mats_ds.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.15"}
    assert set(metadata.get_all("Provides-Extra")) == {*BUILDS, *EXTRAS}
    plain = {re.match(r"[\w.-]+", line).group() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "deepspeed", "av", "pydantic", "nvidia-ml-py"} <= plain
    assert not any(name.startswith("nvidia-dali") for name in plain), "which DALI depends on the driver"


def test_the_citation_names_this_version_and_the_paper_of_the_method():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mats_ds.__version__ and citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0" and {"title", "message", "authors"} <= set(citation)
    assert "2211.10636" in citation["preferred-citation"]["url"]


def test_the_image_installs_the_lock_and_leaves_out_nothing_that_the_package_needs():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG CUDA=(\w+)$", dockerfile, re.MULTILINE).group(1) in BUILDS
    assert "--frozen" in dockerfile and "--require-hashes" in dockerfile
    ignored = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    assert not ignored & {"mats_ds", "ds_configs", "profiling", "pyproject.toml", "setup.py", "uv.lock", "LICENSE", "README.md"}
    capabilities = re.search(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", dockerfile).group(1).split(",")
    assert {"compute", "utility", "video"} <= set(capabilities), "video is NVDEC, utility is NVML"
