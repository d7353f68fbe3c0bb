"""Commands of ours that a person may paste where they stand."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.core.storage import package_files
from mats_ds.core.storage.package_files import help_command, own_command


@pytest.fixture
def bare(monkeypatch):
    """No `mats` on the path."""
    monkeypatch.setattr(package_files.shutil, "which", lambda name: None)


def test_the_console_command_of_this_python_comes_first(monkeypatch):
    monkeypatch.setattr(package_files.shutil, "which", lambda name: str(Path(sys.executable).parent / name))
    assert own_command("report", "runs/my run") == "mats report 'runs/my run'"


def test_a_console_command_of_another_python_is_not_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(package_files.shutil, "which", lambda name: str(tmp_path / name))
    assert not own_command("report").startswith("mats ")


def test_in_a_checkout_it_is_launch_sh_by_its_path_from_here(bare, monkeypatch, tmp_path):
    root = package_files.PACKAGE.parent
    for folder in (root, root / "docs", tmp_path):
        monkeypatch.chdir(folder)
        bash, path, verb, word = shlex.split(own_command("plan", "--help"))
        assert (bash, verb, word) == ("bash", "plan", "--help") and Path(path).resolve() == root / "launch.sh", folder
    monkeypatch.chdir(root)
    assert own_command("plan") == "bash launch.sh plan"


def test_of_a_wheel_it_is_the_module_of_this_python(bare, monkeypatch, tmp_path):
    monkeypatch.setattr(package_files, "PACKAGE", tmp_path / "mats_ds")
    command = own_command("plan", "--help")
    assert shlex.split(command) == [sys.executable, "-m", "mats_ds", "plan", "--help"]
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("prog", "words"),
    [
        ("mats prepare check", "prepare check --help"),
        ("pretrain.py", "pretrain --help"),  # as DeepSpeed's launcher starts it
        ("loader.py", "loader.py --help"),
        ("mats", "mats --help"),
    ],
)
def test_the_command_for_help_is_one_that_works_here(bare, prog, words):
    wanted = words if words.startswith(prog) else own_command(*words.split())
    assert help_command(prog) == wanted


def test_names_that_a_shell_would_read_are_quoted(bare):
    assert own_command("prepare", "check", "$(touch x).csv").endswith("prepare check '$(touch x).csv'")
