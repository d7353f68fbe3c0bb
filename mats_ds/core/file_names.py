"""Is a text that came from a file fit to be a part of a path? It is where it leads nowhere else, and a person can see it."""

from __future__ import annotations

MAX_CHARACTERS, MAX_BYTES = 100, 200  # of the 255 bytes that a name may have, what is added to it needs some
# The separators of all systems, and what shared Windows disks (SMB, NTFS) do not have in names.
FORBIDDEN = '/\\:*?"<>|'
JOINERS = "\u200c\u200d"  # not printable by themselves, and part of words in Persian and Indian scripts


def why_no_file_name(name: str) -> str | None:
    """Why a text is not taken for the name of a file or folder, None where it is one."""
    if not name or name != name.strip():
        return "it should not be empty, and not begin or end with a space"
    if bad := next((letter for letter in name if letter in FORBIDDEN), None):
        return f"it should have none of {FORBIDDEN}, this one has {bad}"
    if bad := next((letter for letter in name if not letter.isprintable() and letter not in JOINERS), None):
        return f"it should be of letters, digits and signs that can be seen, this one has {bad!a}"
    if name[0] in ".-~":
        return f"it should not begin with {name[0]!r}"
    if name.endswith("."):
        return "it should not end with a full stop"
    if len(name) > MAX_CHARACTERS or len(name.encode()) > MAX_BYTES:
        return f"it should have at most {MAX_CHARACTERS} letters ({MAX_BYTES} bytes), this one has {len(name)}"
    return None
