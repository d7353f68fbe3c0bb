"""A run folder that is not the same for all ranks is refused before the first step."""

from __future__ import annotations

import socket
from pathlib import Path

HOSTS = ("alpha", "alpha", "beta")


def see_folder(folders):
    from mats_ds.distributed.consistency import check_shared_folder
    from mats_ds.distributed.ranks import start_distributed

    ranks = start_distributed()
    socket.gethostname = lambda: HOSTS[ranks.rank]
    try:
        check_shared_folder(Path(folders[ranks.rank]), ranks, appear_seconds=0.3)
    except ValueError as error:
        return str(error)
    return "shared"


def test_one_run_folder_for_all_is_seen_and_left_as_it_was(ranks, tmp_path):
    assert ranks(see_folder, 3, 3 * [str(tmp_path)]) == 3 * ["shared"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_of_its_own_on_one_host_is_refused_on_all(ranks, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    texts = ranks(see_folder, 3, [str(tmp_path), str(tmp_path), str(own)])
    # in a real run the path is the same
    assert texts[1] == texts[0] and texts[2] == texts[0].replace(str(tmp_path), str(own))
    assert "beta does not see what alpha writes there" in texts[0] and "give an --out on a filesystem" in texts[0]


def test_a_run_folder_that_cannot_be_written_is_one_error(ranks, tmp_path):
    texts = ranks(see_folder, 3, 3 * [str(tmp_path / "missing")])
    assert texts == 3 * [f"cannot write into the run folder {tmp_path / 'missing'}: No such file or directory"]
