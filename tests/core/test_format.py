from __future__ import annotations

import pytest

from mats_ds.core.format import format_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 10, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (61.25 * 2**30, "61.25 GiB"),
        (3 << 40, "3.00 TiB"),
        (-(2**30), "-1.00 GiB"),
    ],
)
def test_bytes_have_the_unit_that_fits(num_bytes, text):
    assert format_bytes(num_bytes) == text
