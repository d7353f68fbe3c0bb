"""Judge a run against a hardware budget: `python profiling/report.py` is `mats report`. See
mats_ds/report.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from mats_ds.core.interrupts import begin_script  # noqa: E402

if __name__ == "__main__":
    begin_script()

from mats_ds.core.cli import leave  # noqa: E402
from mats_ds.report import main  # noqa: E402

if __name__ == "__main__":
    leave(main())
