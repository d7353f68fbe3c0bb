"""A table as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[tuple]) -> str:
    """CSV text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
