"""Who made the files of a run: somebody else's are to be gone on with only where they are trusted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def describe_strangers(paths: Iterable[Path]) -> str | None:
    """The users other than this one that own some of the paths, such as "ada (uid 1001)"; None where all are this user's own, and
    where the system knows no users.
    """
    if not hasattr(os, "getuid"):
        return None
    owners = {path.lstat().st_uid for path in paths if os.path.lexists(path)} - {os.getuid()}
    return ", ".join(map(name_user, sorted(owners))) or None


def name_user(uid: int) -> str:
    """Name and number of a user; the number alone where this machine has no name for it."""
    try:
        import pwd

        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"
