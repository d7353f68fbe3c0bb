"""A file is known again by size, times and content, whatever the clock does."""

import os

import pytest

from mats_ds.data.prepare.file_identity import FileIdentity, identify, is_same_file, with_sample


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * 5000)
    return path


def set_time(path, changed_ns):
    os.utime(path, ns=(changed_ns, changed_ns))


def test_other_content_of_the_same_size_and_time_is_another_file(file):
    then = with_sample(file, identify(file))
    file.write_bytes(bytes(reversed(range(256))) * 5000)
    set_time(file, then.modified_ns)  # as `cp -p`, or a clock that was put back
    assert not is_same_file(file, identify(file), then)


def test_a_change_that_leaves_the_content_alone_is_none(file):
    then = with_sample(file, identify(file))
    os.chmod(file, 0o600)
    assert identify(file).changed_ns != then.changed_ns and is_same_file(file, identify(file), then)


@pytest.mark.parametrize("jump_ns", [-(10**18), 10**18])
def test_a_clock_that_jumps_makes_no_file_older_or_newer(file, jump_ns):
    set_time(file, identify(file).modified_ns + jump_ns)
    then = with_sample(file, identify(file))
    assert is_same_file(file, identify(file), then)
    file.write_bytes(b"new")  # with the time of now, before or after
    assert not is_same_file(file, identify(file), then)


def test_what_version_0_1_noted_is_compared_as_it_did(file):
    now = identify(file)
    assert is_same_file(file, now, FileIdentity(now.num_bytes, now.modified_ns))
    assert not is_same_file(file, now, FileIdentity(now.num_bytes, now.modified_ns + 1))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p")
    assert with_sample(tmp_path / "p", identify(tmp_path / "p")).sample is None
