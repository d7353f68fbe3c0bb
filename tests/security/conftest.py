"""Random input for everything that reads files of other people: it is read, or refused with a
ValueError that says why.

MATS_FUZZ_EXAMPLES=2000 tries more (default: as many as take some seconds); without it every run
tries the same.
"""

from __future__ import annotations

import os

import pytest

hypothesis = pytest.importorskip("hypothesis")

MORE = os.environ.get("MATS_FUZZ_EXAMPLES")
hypothesis.settings.register_profile(
    "mats_ds",
    max_examples=int(MORE or 40),
    derandomize=MORE is None,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("mats_ds")


@pytest.fixture(scope="session")
def read_or_refuse():
    """`read_or_refuse(read, *arguments)`: what it returns; None where it raises a ValueError with
    words. All else is a fault."""

    def call(read, *arguments, **options):
        try:
            return read(*arguments, **options)
        except ValueError as refusal:
            assert str(refusal).strip(), "a refusal without a word"
            return None

    return call
