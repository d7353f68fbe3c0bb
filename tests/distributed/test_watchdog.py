"""What a rank looks at to know that it is not alone in the dark."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from mats_ds.distributed.watchdog import find_launchers

SCRIPT = (
    "import sys; sys.path[:0] = {path!r}; from mats_ds.distributed.watchdog import find_launchers; print(len(find_launchers()))"
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("torchrun", 1), ("deepspeed", 1), ("mydeepspeed.py", 0)])
def test_a_launcher_is_known_by_its_name(tmp_path, name, expected):
    launcher = tmp_path / "deepspeed-experiments" / name
    launcher.parent.mkdir()
    child = [sys.executable, "-c", SCRIPT.format(path=sys.path)]
    launcher.write_text(f"import subprocess, sys; sys.exit(subprocess.call({child!r}))")
    found = subprocess.run([sys.executable, "-u", str(launcher)], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip().splitlines()[-1] == str(expected)


def test_a_test_has_no_launcher():
    assert all(process.pid != psutil.Process().pid for process in find_launchers())
    assert find_launchers() == []


def find_others_where_a_clock_was_set():
    """The ranks that this one finds beside it, where the clock was set by an hour between the
    starts of any two."""
    from types import SimpleNamespace

    import torch

    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.distributed.watchdog import find_others

    info = start_distributed()
    linux = psutil._psplatform
    true_boot_time = linux.boot_time()
    linux.BOOT_TIME = true_boot_time + 3600 * info.rank  # psutil 5.9 keeps it, later ones ask again
    linux.boot_time = lambda: true_boot_time + 3600 * info.rank
    found = list(find_others(SimpleNamespace(rank=info.rank, world_size=info.world_size)))
    torch.distributed.barrier()  # a rank that has looked stays until all have
    return found


def test_ranks_know_each_other_whatever_happens_to_the_clock(ranks):
    assert ranks(find_others_where_a_clock_was_set, 3) == [[1, 2], [0, 2], [0, 1]]
