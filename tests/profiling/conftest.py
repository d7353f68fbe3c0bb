"""The files of profiling/ are found by name, as when report.py runs as a script; fake_runs.py is found beside the tests."""

import sys
from pathlib import Path

PROFILING = Path(__file__).parents[2] / "profiling"
for folder in (Path(__file__).parent, PROFILING, PROFILING.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
