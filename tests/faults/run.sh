#!/usr/bin/env bash
# Hurt real runs and print a table of what each fault lost: bash tests/faults/run.sh [--short] [--out FOLDER] [--seed N]
set -euo pipefail
ROOT="$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../.." && pwd -P)"
PYTHON="$ROOT/.venv/bin/python"
[[ -x $PYTHON ]] || PYTHON="$(command -v python || command -v python3)"
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
exec "$PYTHON" "$ROOT/tests/faults/run.py" "$@"
