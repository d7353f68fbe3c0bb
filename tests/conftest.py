"""What holds for every test: those marked gpu are skipped where torch sees no GPU, and Ctrl-C
works."""

import contextlib
import resource
import signal

import pytest

from tests.video_files import (  # noqa: F401 (fixtures)
    break_packet,
    read_numbers,
    real_videos,
    when_opened,
    write_broken,
    write_video,
)


def pytest_configure():
    """A shell starts what runs in its background (`nohup pytest ... &`) with Ctrl-C ignored, nohup
    with SIGHUP ignored, and whatever the tests start would ignore them too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # the tests go on; what they start has the default


def pytest_collection_modifyitems(items):
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def ranks():
    """`ranks(function, world_size, *arguments)`: run a function on that many gloo ranks; see
    tests/ranks.py."""
    pytest.importorskip("deepspeed")
    from tests.ranks import run_ranks

    return run_ranks


@pytest.fixture
def file_limit():
    """`with file_limit(BYTES)`: a write beyond so many bytes of a file fails with an OSError, as on
    a full disk."""

    @contextlib.contextmanager
    def limit(num_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal that comes with it
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
