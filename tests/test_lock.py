"""The lock files: one pinned, hashed version of everything, within the ranges of setup.py, on every Python that they allow."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"cuda13": "requirements.lock", "cuda12": "requirements-cuda12.lock"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OFFLINE = re.compile(r"error sending request|dns error|failed to connect|network connectivity|timed out|no route", re.IGNORECASE)


def read_ranges(extra):
    """What setup.py asks for with an extra and with `test`."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    found = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    extras = ast.literal_eval(found["EXTRAS"])
    return [Requirement(text) for text in ast.literal_eval(found["REQUIREMENTS"]) + extras[extra] + extras["test"]]


def read_pins(extra):
    """(requirement, number of its hashes) of every entry of a lock file."""
    text = (ROOT / LOCKS[extra]).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    return [(Requirement(entry.split("\\")[0].strip()), entry.count("--hash=sha256:")) for entry in entries]


def environment(python):
    return {"python_version": python, "python_full_version": f"{python}.2", "sys_platform": "linux", "platform_machine": "x86_64"}


@pytest.mark.parametrize("extra", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_range_of_setup_is_met(extra, python):
    def holds(marker: Marker | None):
        return marker is None or marker.evaluate(environment(python))

    pinned = {}
    for pin, _ in read_pins(extra):
        if holds(pin.marker):
            name = canonicalize_name(pin.name)
            assert name not in pinned, f"two versions of {name} on Python {python}"
            [specifier] = pin.specifier
            assert specifier.operator == "==", pin
            pinned[name] = specifier.version
    for wanted in read_ranges(extra):
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{LOCKS[extra]} lacks {name}: make it anew (CONTRIBUTING.md)"
        assert wanted.specifier.contains(pinned[name], prereleases=True), f"{wanted} is not met by {pinned[name]}"


@pytest.mark.parametrize("extra", LOCKS)
def test_every_version_has_its_hashes_and_no_place(extra):
    pins = read_pins(extra)
    assert len(pins) > 60
    assert not [str(pin) for pin, num_hashes in pins if num_hashes < 1 or pin.url]
    text = (ROOT / LOCKS[extra]).read_text(encoding="utf-8")
    assert not re.search(r"https?:|--index|--extra-index|--find-links|file:|@ ", text)
    assert f"uv pip compile setup.py --extra {extra} --extra test" in text[:400]


@pytest.mark.slow
@pytest.mark.parametrize("extra", LOCKS)
def test_uv_would_install_it(extra, tmp_path):
    uv = shutil.which("uv") or pytest.skip("no uv here")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    command = [
        uv,
        "pip",
        "install",
        "--dry-run",
        "--require-hashes",
        "-r",
        LOCKS[extra],
        "--python",
        tmp_path / "venv" / "bin" / "python",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("no network")
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr and "+ torch==" in done.stderr
