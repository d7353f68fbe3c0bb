"""The seconds in which a program imports torch and its like: after everything that can be checked
without them, so that a wrong argument is answered at once.

with importing("torch", "deepspeed"):
    from mats_ds.training.run import start_run
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from mats_ds.core.interrupts import end_at_once

NAMES = {"deepspeed": "DeepSpeed", "av": "PyAV"}  # of packages, where the module has another
logger = logging.getLogger("mats_ds")


@contextlib.contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Inside it these modules are imported: one line names those that are not there yet, and a
    signal ends the process at once (`end_at_once`).

    The line is logged by rank 0 where it logs what it does; a program that is silent while all is
    well prints it on a terminal alone.
    """
    new = [NAMES.get(module, module) for module in modules if module not in sys.modules]
    line = f"importing {' and '.join(new)}: this takes some seconds"
    if new and logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    elif new and os.environ.get("RANK", "0") == "0" and sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
    with end_at_once():
        yield
