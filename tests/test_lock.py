"""uv.lock: one hashed version of every package from the public index, within the ranges of
pyproject.toml, on every Python."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mats_ds.install import BUILDS, EXTRAS, read_requirements

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OFFLINE = re.compile(r"error sending request|dns error|failed to connect|network connectivity|timed out|no route", re.IGNORECASE)


def export(build, *options):
    """The list of packages that `launch.sh setup --locked` installs."""
    beside = Path(sys.prefix, "bin", "uv")
    uv = shutil.which("uv") or (beside if beside.exists() else pytest.skip("no uv here"))
    command = [uv, "export", "--frozen", "--offline", "--no-emit-project", "--no-annotate", "--no-header", "--directory", ROOT]
    command += ["--python", sys.executable, *(word for extra in (build, *EXTRAS) for word in ("--extra", extra)), *options]
    return uv, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def environment(python):
    return {"python_version": python, "python_full_version": f"{python}.2", "sys_platform": "linux", "platform_machine": "x86_64"}


def test_it_names_the_public_index_alone_and_every_file_has_its_hash():
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    others = [package for package in packages if package["name"] != "mats-ds"]
    assert len(others) > 60
    assert {package["source"]["registry"] for package in others} == {"https://pypi.org/simple"}
    files = [file for package in others for file in [*package.get("wheels", []), package.get("sdist")] if file]
    assert all(file["url"].startswith("https://files.pythonhosted.org/packages/") for file in files)
    assert all(file["hash"].startswith("sha256:") for file in files)


@pytest.mark.parametrize("build", BUILDS)
def test_every_range_of_pyproject_is_met_on_every_python(build):
    _, text = export(build)
    entries = re.split(r"\n(?=\S)", text.strip())
    pins = [Requirement(entry.split("\\")[0].strip()) for entry in entries]
    assert all("--hash=sha256:" in entry for entry in entries) and not re.search(r"https?:|file:|@ |--index", text)
    ranges = read_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for python in PYTHONS:
        pinned = {}
        for pin in pins:
            if pin.marker is None or pin.marker.evaluate(environment(python)):
                name = canonicalize_name(pin.name)
                assert name not in pinned, f"two versions of {name} on Python {python}"
                [specifier] = pin.specifier
                assert specifier.operator == "==", pin
                pinned[name] = specifier.version
        for wanted in map(Requirement, sum((ranges[extra] for extra in (build, *EXTRAS)), ranges["dependencies"])):
            name = canonicalize_name(wanted.name)
            assert name in pinned, f"uv.lock lacks {name}: type  uv lock"
            assert wanted.specifier.contains(pinned[name], prereleases=True), f"{wanted} is not met by {pinned[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_uv_would_install_it(build, tmp_path):
    uv, text = export(build)
    (tmp_path / "pins.txt").write_text(text)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    command = [uv, "pip", "install", "--dry-run", "--require-hashes", "-r", tmp_path / "pins.txt"]
    command += ["--python", tmp_path / "venv" / "bin" / "python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("no network")
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr and "+ torch==" in done.stderr
