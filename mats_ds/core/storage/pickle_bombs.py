"""Refuses pickles of torch with calls that fill the memory without running any code, before they
are read.

torch's reader for untrusted files (`weights_only`) takes `bytearray(2147483647)` from sixty bytes,
as often as they name it, and copies a tensor of one number as if it had billions. Files of weights
have no use for either.
"""

from __future__ import annotations

import errno
import zipfile
from typing import IO

PICKLE = "data.pkl"  # of a zip file that torch wrote; older ones hold their pickles as they are
BLOCK_BYTES = 1 << 20
# As the opcode GLOBAL names them: module and name, each to the end of a line. torch's reader has no
# other way to name a function.
INFLATING = {
    b"builtins\nbytearray\n": "bytearray",
    b"__builtin__\nbytearray\n": "bytearray",
    b"torch._utils\n_rebuild_device_tensor_from_cpu_tensor\n": "_rebuild_device_tensor_from_cpu_tensor",
    b"torch._utils\n_rebuild_device_tensor_from_numpy\n": "_rebuild_device_tensor_from_numpy",
}
OVERLAP = max(map(len, INFLATING)) - 1


class InflatingPickle(ValueError):
    """A pickle would fill the memory with what its file does not hold."""


def refuse_inflating_calls(stream: IO[bytes]) -> None:
    """Raises InflatingPickle for a file of torch that names a function of INFLATING. The stream
    ends at its beginning.

    A zip file has been looked over by `archives.open_archive`. Raises what zipfile does for one
    that is torn.
    """
    stream.seek(0)
    is_zip = stream.read(2) == b"PK"
    stream.seek(0)
    if is_zip:
        try:
            _search_zip(stream)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise zipfile.BadZipFile("an entry begins before the file does") from None
    else:
        _search(stream)
    stream.seek(0)


def _search_zip(stream: IO[bytes]) -> None:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if info.filename.endswith(PICKLE):
                with archive.open(info) as content:
                    _search(content)


def _search(stream: IO[bytes]) -> None:
    tail = b""
    while block := stream.read(BLOCK_BYTES):
        block = tail + block
        for mark, name in INFLATING.items():
            if mark in block:
                raise InflatingPickle(f"it calls {name}, which fills the memory and is in no file of weights")
        tail = block[-OVERLAP:]
