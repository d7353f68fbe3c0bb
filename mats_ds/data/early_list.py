"""The first look at a list of videos: before torch and its like are imported, so that a wrong path
or line is answered at once."""

from __future__ import annotations

import os
from pathlib import Path

from mats_ds.data.manifest import Manifest, read_manifest

EARLY_BYTES = 1 << 22  # some 50,000 videos, in a quarter of a second


def check_list(
    source: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, root_name: str = "--root"
) -> Manifest | None:
    """The videos of a list of at most EARLY_BYTES. None for a longer one and for a folder, whose
    videos are counted once, by who uses them: there the path alone is looked at.

    Raises ValueError as `read_manifest` does.
    """
    path = Path(source)
    is_short = path.is_file() and path.stat().st_size <= EARLY_BYTES
    if is_short or not path.exists() or not (root is None or Path(root).is_dir()):
        return read_manifest(source, root=root, root_name=root_name)
    return None
