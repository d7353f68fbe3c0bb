"""The checks before DeepSpeed starts ranks on other hosts: programs, ssh, equal paths, and
nothing that a shell expands.

DeepSpeed writes paths and variables without quotes into a line that pdsh hands to a shell over
there.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mats_ds.core.storage.files import read_text
from mats_ds.core.text import Lines, quote_word

# beginnings of the variables that DeepSpeed hands to other hosts
HANDED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
MVAPICH_FILE = Path("/tmp/deepspeed_mvapich_hostfile")
MAX_VARIABLES_BYTES = 1 << 20
SHOWN_LINES = 8
_SAFE_WORD = re.compile(rb"[A-Za-z0-9_@+:,./-][A-Za-z0-9_@+=:,./-]*")
_SAFE_IN_PATH = re.compile(r"[A-Za-z0-9_@+=:,./-]")


def check_launcher(name: str) -> None:
    """Raises ValueError for a launcher that DeepSpeed has not, and FileNotFoundError where its
    program is not here."""
    if name == "pdsh":
        _need("pdsh", "pdsh is not here. On Debian or Ubuntu, type:  sudo apt-get install pdsh",
              "  (or use --launcher openmpi or slurm, or --no_ssh on every machine: see --help)")  # fmt: skip
    elif name == "openmpi":
        _need("ompi_info", "mpirun of Open MPI is not here. On Debian or Ubuntu, type:  sudo apt-get install openmpi-bin")
    elif name == "slurm":
        _need("sinfo", "srun and sinfo are not here: --launcher slurm works",
              "  on a machine of a SLURM cluster, inside a job (slurm.sbatch of the sources is one)")  # fmt: skip
    elif name == "mvapich":
        if MVAPICH_FILE.is_symlink() or (MVAPICH_FILE.exists() and MVAPICH_FILE.stat().st_uid != os.geteuid()):
            raise ValueError(f"DeepSpeed writes into {MVAPICH_FILE}, which is a link or not yours: remove it first")
    elif name not in ("mpich", "impi"):
        raise ValueError(f"--launcher takes pdsh, openmpi or slurm, got {name!r}")


def _need(program: str, *lines: str) -> None:
    if shutil.which(program) is None:
        raise FileNotFoundError(Lines(*lines))


def check_paths(*paths: str | Path) -> None:
    """Raises ValueError for a path with a character that a shell does not take literally in a word
    without quotes."""
    for path in paths:
        if unsafe := find_unsafe(str(path)):
            raise ValueError(
                f"the path {str(path)!r} holds the character {quote_word(unsafe)}, which a shell on the other hosts would read "
                "another way: move it to a path without (a link will not do), or take --launcher openmpi or slurm"
            )


def find_unsafe(text: str) -> str:
    """The first character that a shell may read another way; letters of other languages are safe.
    "" for none."""
    return next((letter for letter in text if letter.isascii() and not _SAFE_IN_PATH.match(letter)), "")


def check_variables(environment: Mapping[str, str], *, in_shell: bool) -> None:
    """Check those that DeepSpeed hands on, by their beginnings and from the files .deepspeed_env at
    home and here.

    in_shell: a shell over there reads  export NAME="VALUE";  (pdsh). Raises ValueError.
    """
    for name, value in environment.items():
        if name.startswith(HANDED_ON):
            _check_variable("environment", name, value, in_shell=in_shell)
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for file in dict.fromkeys(Path(folder, name) for folder in (os.path.expanduser("~"), ".")):
        if file.is_file():
            for where, variable, value in _read_variables(file):
                _check_variable(where, variable, value, in_shell=in_shell)


def _read_variables(file: Path) -> Iterator[tuple[str, str, str]]:
    text = read_text(file, max_bytes=MAX_VARIABLES_BYTES, follows_links=True)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        where = f"{file}, line {number}"
        name, equals, value = line.removesuffix("\r").partition("=")
        if not equals or "\r" in name + value:
            raise ValueError(f"{where}: expected NAME=VALUE, got {line!r}")
        yield where, re.sub(r"[ \t]", "", name), value


def _check_variable(where: str, name: str, value: str, *, in_shell: bool) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{where}: {name!r} is no name of a variable (in a file, each line is NAME=VALUE)")
    if in_shell and (unsafe := re.search(r'["$`\\%]', value)):
        raise ValueError(
            f"{where}: the value of {name} holds the character {unsafe[0]}, which a shell on the other hosts would read another "
            "way: write it without, or remove the variable"
        )


def check_hosts(hosts: Sequence[str], paths: Sequence[str | Path], *, ssh_port: str = "") -> None:
    """Ask every host through pdsh whether it has these paths. Raises ConnectionError that names the
    hosts without an answer, and FileNotFoundError that names what is missing where.
    """
    append = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} -o BatchMode=yes -o ConnectTimeout=10"
    append += f" -p {ssh_port}" if ssh_port else ""
    words = " ".join(shlex.quote(str(path)) for path in paths)
    question = f'for f in {words}; do [ -e "$f" ] || echo "lacks $f"; done; echo answered'
    done = subprocess.run(
        ["pdsh", "-w", ",".join(hosts), question],
        env={**os.environ, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": append},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    answers = done.stdout.decode(errors="replace").splitlines()
    silent = [host for host in hosts if f"{host}: answered" not in answers]
    if silent:
        others = [line for line in answers if ": answered" not in line]
        raise ConnectionError(
            Lines(
                f"cannot start anything on {' '.join(silent)}: ssh without a password must work (ssh-copy-id). It printed:",
                *(f"  {line}" for line in others[:SHOWN_LINES]),
            )
        )
    missing = [line for line in answers if ": lacks " in line]
    if missing:
        raise FileNotFoundError(
            Lines(
                "this project, its Python and this folder must be at the same path on all machines:",
                *(f"  {line}" for line in missing[:SHOWN_LINES]),
            )
        )


def encode_arguments(program: Path, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The program and arguments to hand to another host: as they are, or where a shell or mpirun on
    the way would change a word, run_encoded.py and all arguments as one safe word.
    """
    # mpirun takes a lone ":" for itself
    if all(_SAFE_WORD.fullmatch(os.fsencode(word)) and word != ":" for word in arguments):
        return program, list(arguments)
    content = b"".join(os.fsencode(word) + b"\0" for word in arguments)
    return Path(__file__).with_name("run_encoded.py"), [program.stem, base64.urlsafe_b64encode(content).decode("ascii")]


def list_needed_paths(program: Path) -> list[str]:
    """The paths that every host must have: the program, its Python, and the folder that this
    process is in."""
    return [str(program), sys.executable, os.getcwd()]
