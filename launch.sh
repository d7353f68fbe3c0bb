#!/usr/bin/env bash
# Install, demo, test, prepare data, train, report: finds a Python and hands over to mats_ds/install.py, which finds or makes
# the environment and becomes the command. `bash launch.sh help` lists the commands.
set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)"

print_help() {
  cat <<'HELP'
Usage: bash launch.sh COMMAND [ARGUMENTS]

  setup [--locked]        only install; --locked: into .venv, the versions of uv.lock, checked by their hashes
  test [PYTEST_ARGS]      run the tests; without arguments, all that are not slow (and, without a GPU, not gpu)
HELP
  cat "$ROOT/mats_ds/commands.txt"
  cat <<'HELP'
  MATS_PYTHON             the Python to use: as it is if it holds the packages, otherwise to create .venv (3.10 to 3.14)
  UV_TORCH_BACKEND=cpu    uv's own: a torch without CUDA (from PyTorch's index) for a machine without a GPU
  UV_DEFAULT_INDEX=URL    uv's own: a package mirror; uv does not read pip's settings

The first command creates .venv next to launch.sh and installs into it (6 to 8 GB). An active environment that already
holds the packages is used as it is and never changed. A CUDA 12 driver gets the CUDA 12 builds of torch and DALI.
HELP
}

starts() { # starts PYTHON: does it run mats_ds/install.py? -I: a module in the caller's folder must not be taken
  command -v "$1" >/dev/null && "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null
}

find_python() { # any that starts; the one that is to hold the packages is chosen by mats_ds/install.py
  local name
  for name in "${MATS_PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$ROOT/.venv/bin/python" \
    python3 python python3.{14..8} /usr/bin/python3; do
    if [[ -n $name ]] && starts "$name"; then
      echo "$name"
      return
    fi
  done
  command -v uv >/dev/null || return 1
  # --directory: uv would obey a uv.toml of the caller's folder
  uv python find --directory "$ROOT" --no-project '>=3.10,<3.15' 2>/dev/null \
    || { uv python install --directory "$ROOT" 3.12 >&2 && uv python find --directory "$ROOT" --no-project 3.12; }
}

if [[ ${1:-help} =~ ^(help|-h|--help)$ || "$1 ${2:-}" =~ ^demo\ (-h|--help)$ ]]; then
  print_help
  exit
fi
if ! PYTHON="$(find_python)"; then
  echo "launch.sh: no Python 3 is here, and no uv that fetches one. On Debian or Ubuntu, type:  sudo apt-get install python3-venv" >&2
  echo "  then run this again. (Or install uv in any other way.)" >&2
  exit 1
fi
exec "$PYTHON" "$ROOT/mats_ds/install.py" "$@"
