"""Packages in parts: what is unpacked on the other machine is what its Python can load, however the
parts arrive."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CARRY = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "carry.py"
# In place of uv: "--target DIR" receives files as wheels have them; DALI's do not compress.
UV = """#!{python}
import random, sys
from pathlib import Path
site = Path(sys.argv[sys.argv.index("--target") + 1])
names = [word.partition("==")[0] for word in sys.argv if word[0] != "-"]
is_dali = any("dali" in name for name in names)
package = site / ("nvidia/dali" if is_dali else "av")
package.mkdir(parents=True)
(package / "__init__.py").write_text("version = 1")
(package / "core.cpython-312-x86_64-linux-gnu.so").write_bytes(random.Random(1).randbytes((9 if is_dali else 2) << 18))
(package / "core.cpython-311-x86_64-linux-gnu.so").write_bytes(b"of another Python")
(package / "core.cpython-312t-x86_64-linux-gnu.so").write_bytes(b"of another Python")
(package / "core.abi3.so").write_bytes(b"of every Python")
(package / "include").mkdir()
(package / "include" / "core.h").write_text("a header")
"""


@pytest.fixture
def carry(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(UV.format(python=sys.executable))
    (tools / "uv").chmod(0o755)

    def run(*arguments, path=f"{tools}:/usr/bin:/bin"):
        command = [sys.executable, str(CARRY), *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=100)

    return run


def test_parts_that_come_one_by_one_are_unpacked_once_they_are_whole(carry, tmp_path):
    packed = carry("pack", "--parts", tmp_path / "parts", "--part_mib", 1)
    assert packed.returncode == 0, packed.stderr
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["1", "2", "3"] and packed.stdout.count("MiB") == 3
    assert all(sum(file.stat().st_size for file in part.iterdir()) <= 1 << 20 for part in parts)
    site, here = tmp_path / "site", tmp_path / "here"
    for order, number in enumerate(("1", "3", "2")):  # each with a fresh checkout
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(tmp_path / "parts" / number, here / number)
        done = carry("unpack", "--parts", here, "--site", site)
        assert done.returncode == 0, done.stderr
        assert (site / "av" / "__init__.py").is_file()
        assert (site / "nvidia").exists() == (order == 2)
        assert ("of 3 pieces have come" in done.stdout) == (order < 2)
    for package in ("av", "nvidia/dali"):
        names = {file.name for file in (site / package).iterdir() if file.is_file()}
        assert names == {"__init__.py", "core.cpython-312-x86_64-linux-gnu.so", "core.abi3.so"}
    content = (site / "nvidia" / "dali" / "core.cpython-312-x86_64-linux-gnu.so").read_bytes()
    assert content == random.Random(1).randbytes(9 << 18)
    again = carry("unpack", "--parts", here, "--site", site)
    assert again.returncode == 0 and again.stdout == "", "nothing new has come"


def test_a_base_that_is_larger_than_a_part_is_an_error_that_says_what_helps(carry, tmp_path):
    done = carry("pack", "--parts", tmp_path / "parts", "--part_mib", 0)
    assert done.returncode == 1 and "--part_mib" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("parts/*/*"))


def test_without_uv_it_says_how_to_get_it(carry, tmp_path):
    done = carry("pack", "--parts", tmp_path / "parts", path=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: uv is not found: pip install uv")


def test_a_folder_without_parts_and_a_part_that_is_torn_are_errors_of_one_line(carry, tmp_path):
    done = carry("unpack", "--parts", tmp_path / "nowhere", "--site", tmp_path / "site")
    assert done.returncode == 2 and done.stderr.startswith("error: no part in") and "--parts" in done.stderr
    carry("pack", "--parts", tmp_path / "parts", "--part_mib", 9)
    base = tmp_path / "parts" / "1" / "base.tar.xz"
    base.write_bytes(base.read_bytes()[:-5000])
    done = carry("unpack", "--parts", tmp_path / "parts", "--site", tmp_path / "site")
    assert done.returncode == 1 and "base.tar.xz did not arrive whole" in done.stderr and done.stderr.count("\n") == 1
