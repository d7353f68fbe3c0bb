"""What FFmpeg says of a fault -> what a person would say of it."""

from __future__ import annotations

VAGUE = "Invalid data found"  # FFmpeg's answer to most broken data


def in_words(error: str) -> str:
    """An error that was met at some place of a file which could be opened."""
    if error.startswith(VAGUE):
        return "the data there is damaged"
    if error.startswith("Resource temporarily unavailable"):  # FFmpeg's way to ask for more data
        return "no more data comes"
    return error
