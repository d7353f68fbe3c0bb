"""A bad file and FFmpeg's error -> a reason that a person understands.

FFmpeg answers most broken files with "Invalid data found when processing input". The first and last
bytes usually show more: an error page that was saved as .mp4, a picture, a download that broke off,
an encrypted stream.
"""

from __future__ import annotations

from mats_ds.core.shards.members import FileBytes, open_file
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, open_video

VAGUE = "Invalid data found"  # FFmpeg's answer to most broken data
LOOK_BYTES = 256 << 10
BOX_HEADER_BYTES = 8
# First bytes of files that often bear the name of a video.
KINDS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
)
# Matroska: ContentEncodingType 1 (encryption); MP4: sample entries and boxes of common encryption
# (ISO/IEC 23001-7).
ENCRYPTION_MARKS = (b"\x50\x33\x81\x01", b"encv", b"schmcenc", b"schmcbcs")


def explain(path: str, reason: str) -> str:
    """A better `reason` where the bytes of the file show it; the same one otherwise."""
    if reason.startswith("End of file"):
        return "cut off before its first frame; its download or recording did not finish"
    if not reason.startswith(VAGUE):
        return reason
    try:
        with open_file(path) as file:
            num_bytes = file.size
            head = file.read(LOOK_BYTES)
            file.seek(max(0, num_bytes - LOOK_BYTES))
            tail = file.read(LOOK_BYTES)
            boxes = _read_boxes(file, num_bytes) if head[4:8] == b"ftyp" else None
    except OSError:
        return reason
    if not any(head) and not any(tail):
        return "filled with zero bytes: its copy or download did not finish"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, not a video: the download was answered with a page"
    for start, kind in KINDS:
        if head.startswith(start):
            return f"{kind}, not a video"
    if _is_text(head):
        return "a text file, not a video"
    if any(mark in head or mark in tail for mark in ENCRYPTION_MARKS):
        return "encrypted: nothing decodes without its key"
    if boxes is not None and b"moov" not in boxes:
        return "cut off: the index at its end (moov) is missing; its download or recording did not finish"
    if _opens(path):
        return "damaged: not one frame of it decodes"
    return "no video that FFmpeg knows, or its beginning is damaged"


def in_words(error: str) -> str:
    """The reason for an error in the middle of a file that could be opened."""
    if error.startswith(VAGUE):
        return "the data there is damaged"
    if error.startswith("Resource temporarily unavailable"):  # FFmpeg's way to ask for more data
        return "no more data comes"
    return error


def _opens(path: str) -> bool:
    try:
        container, _ = open_video(path)
    except (*READ_ERRORS, UnreadableVideo):
        return False
    container.close()
    return True


def _is_text(head: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" or byte >= 128 for byte in head)
    return printable == len(head) and not _has_invalid_utf8(head)


def _has_invalid_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(head) - 4  # a letter of several bytes may be cut at the end
    return False


def _read_boxes(file: FileBytes, num_bytes: int) -> list[bytes]:
    """The kinds of the top-level boxes of an MP4 file, as far as it reaches."""
    kinds, offset = [], 0
    while offset + BOX_HEADER_BYTES <= num_bytes and len(kinds) < 10_000:
        file.seek(offset)
        header = file.read(2 * BOX_HEADER_BYTES)
        size = int.from_bytes(header[:4], "big")
        kinds.append(header[4:8])
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < BOX_HEADER_BYTES:  # 0: the last box, up to the end of the file
            break
        offset += size
    return kinds
