"""Find or make the Python environment that holds the packages of pyproject.toml, and hand a command
over to it.

    ANY_PYTHON mats_ds/install.py setup [--locked] | test [PYTEST_ARGS] | VERB ...
    ANY_PYTHON mats_ds/install.py --lacks [EXTRA ...]   prints what that Python lacks

Any Python from 3.8 on runs this file, with no package of others.

(Over 300 lines: it must run before anything of ours but text and the command line can be imported.)
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import ast
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata

from mats_ds.__main__ import OF_LAUNCH_SH, VERBS, describe_unknown
from mats_ds.core.cli import RUN_ERROR, USAGE_ERROR, run_script
from mats_ds.core.text import say, tell_error
from mats_ds.distributed.process_group import Stopped, is_dry_run, run_in_group, show_words
from mats_ds.distributed.visible_gpus import choose_gpus, find_driver_cuda, list_gpus

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".mats_ds-installed"  # the build, and what the installation was made from
OF_VENV = {"bin", "lib", "lib64", "include", "share", "pyvenv.cfg", ".gitignore", ".lock", "CACHEDIR.TAG", STAMP.name}
BUILDS = ("cuda13", "cuda12")  # extras whose first package is DALI; one of the two is enough
EXTRAS = ("test", "export", "examples", "docs")  # what the tests and the site need beside
# Quick tests run on all cores, up to 4 processes of 2 GB; those of one file share a process.
SIDE_BY_SIDE = ("--numprocesses", "logical", "--maxprocesses", "4", "--dist", "loadfile")
NAMES = ("python3", "python", "python3.12", "python3.11", "python3.13", "python3.10", "python3.14")
SHOWN_PACKAGES = 4


def main() -> int:
    """Prepare the environment and become the command; returns the exit status where there is
    nothing to become."""
    command, *rest = sys.argv[1:]
    if command == "--lacks":
        print(list_missing(rest))
        return 0
    try:
        check_command(command, rest)
        python = find_environment([] if command in VERBS else EXTRAS, is_locked=[command, *rest] == ["setup", "--locked"])
        words = [python, str(ROOT / "mats_ds" / "__main__.py"), command, *rest]
        if command == "test":  # without arguments, what is quick and needs no GPU that is not there
            quick = "not slow" if rest or choose_gpus(list_gpus(), os.environ) else "not slow and not gpu"
            words = [python, "-m", "pytest", *(rest or ["-m", quick, *SIDE_BY_SIDE])]
    except (ValueError, OSError) as error:
        tell_error(error)
        return USAGE_ERROR if isinstance(error, ValueError) else RUN_ERROR
    except Stopped as stopped:
        say(stopped, stream=sys.stderr)
        return 128 + stopped.number
    if command == "setup":
        note(f"ready: {python}")
        return 0
    if command in ("demo", "test") or (command == "report" and all(word.startswith("-") for word in rest)):
        words[3:] = map(os.path.abspath, rest) if command == "demo" else words[3:]
        os.chdir(ROOT)  # other commands take relative paths from the caller's folder
    if is_dry_run() and (command == "test" or not os.path.exists(python)):
        print(show_words(words))
        return 0
    sys.stdout.flush()
    os.execv(python, words)


def check_command(command: str, arguments: list[str]) -> None:
    """Raises ValueError for what no environment would make right."""
    if command not in (*VERBS, *OF_LAUNCH_SH):
        raise ValueError(describe_unknown(command))
    if command == "setup" and arguments not in ([], ["--locked"]):
        raise ValueError(f"setup takes --locked or nothing, got {arguments[0]!r}")
    if command == "demo" and len(arguments) > 1:
        raise ValueError(f"demo takes one folder, got {len(arguments)}: {' '.join(arguments)}")
    if command == "demo" and arguments and not os.path.exists(arguments[0]):
        raise ValueError(f"demo: there is no folder {arguments[0]}")


def read_requirements(text: str) -> dict[str, list[str]]:
    """The lists of packages in the text of a pyproject.toml: {"dependencies": [...], "cuda13":
    [...], ...}.

    Python 3.10 has no TOML parser, but a TOML list of strings is also a Python list.
    """
    names = "|".join(("dependencies", *BUILDS, *EXTRAS))
    lists = re.findall(rf"^({names}) = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    return {name: ast.literal_eval(value) for name, value in lists}


def list_missing(extras: Sequence[str]) -> str:
    """The packages of pyproject.toml, with these extras, that the running Python lacks; "" for
    none. Imports none of them."""
    requirements = read_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = sum((requirements[extra] for extra in extras), requirements["dependencies"])
    missing = list(filter(None, map(find_missing, wanted)))
    if all(find_missing(requirements[build][0]) for build in BUILDS):
        missing.append("nvidia-dali")
    if not (3, 10) <= sys.version_info[:2] < (3, 15):
        missing.insert(0, "Python 3.10 to 3.14")
    return ", ".join(missing[:SHOWN_PACKAGES] + ["..."] * (len(missing) > SHOWN_PACKAGES))


def find_missing(requirement: str) -> str | None:
    """The requirement `name>=version` if it is not installed, else None."""
    name, lowest = re.match(r"([\w.-]+)[^;>]*(?:>=([\d.]+))?", requirement).groups()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name
    return f"{name}>={lowest}" if lowest and _numbers(version) < _numbers(lowest) else None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]


def ask_missing(python: str, extras: Sequence[str]) -> str:
    """`list_missing` of that Python."""
    if python == sys.executable:
        return list_missing(extras)
    answer = _ask([python, str(ROOT / "mats_ds" / "install.py"), "--lacks", *extras])
    return "a Python that starts" if answer is None else answer


def _ask(words: list[str]) -> str | None:
    """The output of a command, without its last new line; None where it fails."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return None if done.returncode else done.stdout.decode(errors="replace").rstrip("\n")


def find_environment(extras: Sequence[str], *, is_locked: bool) -> str:
    """The interpreter to use: MATS_PYTHON or an active environment that holds the packages as it
    is, else .venv, made or brought up to date where it has to be. Raises ValueError for a wrong
    setting, OSError where nothing can be installed.
    """
    named, active = os.environ.get("MATS_PYTHON"), os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    lacking = ""
    if not is_locked:
        if named and (path := shutil.which(named)) and not ask_missing(path, extras):
            return os.path.abspath(path)
        if active and os.path.realpath(active) != str(VENV.resolve()):
            python = os.path.join(os.path.abspath(active), "bin", "python")
            if not (lacking := ask_missing(python, extras)):
                return python
        if is_current():
            return str(VENV_PYTHON)
    if lacking:
        note(f"the active environment lacks {lacking}: making .venv instead")
    install(is_locked=is_locked)
    return str(VENV_PYTHON)


def is_current() -> bool:
    """Whether .venv was made from today's pyproject.toml for this machine's driver, and still holds
    all packages."""
    if not STAMP.is_file() or not os.access(VENV_PYTHON, os.X_OK):
        return False
    stamped = STAMP.read_text(encoding="utf-8")
    build = stamped.partition(" ")[0]
    # CUDA 12 builds also run on a CUDA 13 driver; the other way round they do not
    return stamped == stamp_text(build) and choose_build() in (build, "cuda13") and not ask_missing(str(VENV_PYTHON), EXTRAS)


def stamp_text(build: str) -> str:
    """The inputs of an installation, as one line."""
    content = b"".join((ROOT / name).read_bytes() for name in ("setup.py", "pyproject.toml"))
    return f"{build} {hashlib.sha256(content).hexdigest()}\n"


def choose_build() -> str:
    """The extra for this machine, cuda12 or cuda13: as UV_TORCH_BACKEND or the driver has it.
    Raises OSError for an old one."""
    backend = os.environ.get("UV_TORCH_BACKEND", "auto")
    if backend.startswith(("cu12", "cu13", "cpu")):
        return "cuda12" if backend.startswith("cu12") else "cuda13"
    cuda = find_driver_cuda() or "13"
    major = int(cuda.partition(".")[0])
    if major < 12:
        raise OSError(f"the NVIDIA driver supports CUDA {cuda} only; CUDA 12 needs driver 525 or newer")
    return "cuda12" if major == 12 else "cuda13"


def install(*, is_locked: bool) -> None:
    """Make .venv, or bring it up to date. Raises ValueError for a wrong setting, OSError where
    something fails."""
    start = time.monotonic()
    build, base = choose_build(), find_base()
    note(f"installing into {VENV} ({build} builds; 6 to 8 GB, some minutes)")
    if os.path.isfile("/etc/ssl/certs/ca-certificates.crt"):
        # trust what this machine trusts, as pip does; the second is older
        for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"):
            os.environ.setdefault(name, "true")
    with tempfile.TemporaryDirectory() as aside:
        uv = find_uv() or fetch_uv(base or sys.executable, aside)
        make_venv(uv, base)
        install_packages(uv, build, pins=os.path.join(aside, "pins.txt") if is_locked else None)
        if is_dry_run():
            return
        if uv.startswith(aside):
            shutil.copy(uv, VENV / "bin" / "uv")
    STAMP.write_text(stamp_text(build), encoding="utf-8")
    note(f"installed in {time.monotonic() - start:.0f} s")


def find_base() -> str | None:
    """An interpreter that the packages support, by its real path (a shim would not survive inside a
    venv); None for none."""
    named = os.environ.get("MATS_PYTHON")
    path = next(filter(None, map(_real_path, [named] if named else NAMES)), None)
    if named and path is None:
        raise ValueError(f"MATS_PYTHON={named} is no Python 3.10 to 3.14")
    return path


def _real_path(name: str) -> str | None:
    # -I: without it, Python would take a module from the folder that the caller is in
    code = "import sys; print(sys.executable); sys.exit(not (3, 10) <= sys.version_info < (3, 15))"
    return _ask([name, "-I", "-c", code]) or None


def find_uv() -> str | None:
    """The uv of PATH, or of an earlier installation; None for none that starts."""
    for path in (shutil.which("uv"), str(VENV / "bin" / "uv") if _real_path(str(VENV_PYTHON)) else None):
        if path and _ask([path, "--version"]) is not None:
            return path
    return None


def fetch_uv(base: str, folder: str) -> str:
    """uv by pip into that folder: through venv, else by a pip that is there."""
    note("uv is not here: fetching it with pip")
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if is_dry_run() or _ask([base, "-I", "-m", "venv", folder]) is not None:
        if is_dry_run():
            print(show_words([base, "-m", "venv", folder]))
        _run([os.path.join(folder, "bin", "python"), "-I", *pip, "uv"], or_else="pip could not fetch uv (see above)")
    elif _ask([base, "-I", "-m", "pip", "--version"]) is not None:
        _run([base, "-I", *pip, "--target", folder, "uv"], or_else="pip could not fetch uv (see above)")
    else:
        raise OSError(
            "neither uv nor python3's venv is here: on Debian or Ubuntu, type  sudo apt-get install python3-venv  and run this "
            "again, or install uv in any other way"
        )
    return os.path.join(folder, "bin", "uv")


def make_venv(uv: str, base: str | None) -> None:
    """Make .venv where its Python does not start."""
    there = _real_path(str(VENV_PYTHON))
    if there is None:
        is_ours = not VENV.is_dir() or (VENV / "pyvenv.cfg").is_file()
        if not is_ours and (other := next((path for path in VENV.iterdir() if path.name not in OF_VENV), None)):
            raise ValueError(
                f"{VENV} is in the way: it holds {other}, so it is no environment of Python; give that folder another name"
            )
        if not is_dry_run():
            shutil.rmtree(VENV, ignore_errors=True)
        # --directory: uv would obey a uv.toml of the folder that the caller is in
        fault = "no Python 3.10 to 3.14 was found or could be fetched: install one, or name it with MATS_PYTHON"
        _run([uv, "venv", "--quiet", "--python", base or "3.12", str(VENV), "--directory", str(ROOT)], or_else=fault)
    elif os.environ.get("MATS_PYTHON") and (ours := _version_of(there)) != (wanted := _version_of(str(base))):
        raise ValueError(f"{VENV} holds Python {ours}, MATS_PYTHON is {wanted}: remove .venv first")


def _version_of(python: str) -> str | None:
    return _ask([python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])


def install_packages(uv: str, build: str, *, pins: str | None) -> None:
    """The packages of pyproject.toml, or with `pins` (a file to write) the versions of uv.lock, and
    this project, editable.

    The lock is installed by its own setuptools, through its export: `uv sync` goes to the index in
    the lock, past any mirror.
    """
    where = ["--directory", str(ROOT), "--python", str(VENV_PYTHON)]
    fault = "the installation failed (see above). A network that needs a mirror: uv reads UV_DEFAULT_INDEX, not pip's settings"
    if pins is None:
        _run(
            [uv, "pip", "install", *where, "--compile-bytecode", "--editable", f".[{','.join((build, *EXTRAS))}]"], or_else=fault
        )
        return
    extras = [word for extra in (build, *EXTRAS) for word in ("--extra", extra)]
    _run([uv, "export", "--quiet", "--frozen", "--no-emit-project", *extras, *where, "--output-file", pins], or_else=fault)
    _run([uv, "pip", "install", *where, "--compile-bytecode", "--require-hashes", "-r", pins], or_else=fault)
    _run([uv, "pip", "install", *where, "--no-deps", "--no-build-isolation", "--editable", "."], or_else=fault)


def _run(words: list[str], *, or_else: str) -> None:
    """Run it, or print it in a dry run. Raises OSError with that text where it fails, Stopped after
    a signal."""
    if is_dry_run():
        print(show_words(words))
    elif run_in_group(words, os.environ):
        raise OSError(or_else)


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    say(f"==> {text}", stream=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
