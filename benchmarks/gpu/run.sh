#!/usr/bin/env bash
# Everything that only a GPU can show, in one command and under 9 minutes:
#   bash benchmarks/gpu/run.sh [--quick] [--cpu] [--out DIR] [--videos DIR] [--only PART ...]
# --quick: a part of the sizes; --cpu: a rehearsal with tiny sizes on the CPU; --videos: real clips for the last part. It installs
# nothing: packages that are missing are named, and what needs them is left out. Packages unpacked into .whl/site are found.
set -euo pipefail
ROOT="$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../.." && pwd -P)"
PYTHON="${MATS_PYTHON:-}"
if [[ -z $PYTHON ]]; then
  for PYTHON in "$ROOT/.venv/bin/python" python3 python; do command -v "$PYTHON" >/dev/null && break; done
fi
if [[ -d $ROOT/.whl/site ]]; then export PYTHONPATH="$ROOT/.whl/site${PYTHONPATH:+:$PYTHONPATH}"; fi
exec "$PYTHON" "$ROOT/benchmarks/gpu/run.py" "$@"
