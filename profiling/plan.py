"""Will it fit: `python profiling/plan.py` is `mats plan`. See mats_ds/plan.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from mats_ds.core.interrupts import begin_script  # noqa: E402

if __name__ == "__main__":
    begin_script()

from mats_ds.core.cli import leave  # noqa: E402
from mats_ds.plan import main  # noqa: E402

if __name__ == "__main__":
    leave(main())
