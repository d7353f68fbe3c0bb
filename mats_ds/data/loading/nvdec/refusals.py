"""What the device's decoder refused: the files, which PyAV decodes from then on, and the codecs of
which it never decoded one."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable

logger = logging.getLogger(__name__)

# files of a codec that the device refused and PyAV decoded, before all of that codec goes to PyAV
MAX_CODEC_REFUSALS = 3
MAX_FILES = 100_000  # that are remembered, those refused longest ago forgotten first: some 20 MB
NUM_NAMED = 5  # in the log; then the 10th, 100th, ...


class Refusals:
    """Refused files and codecs of one run. num_files: how many files were refused."""

    def __init__(self) -> None:
        self.num_files = 0
        self._files: OrderedDict[str, None] = OrderedDict()
        self._proven: set[str] = set()
        self._failed: Counter[str] = Counter()

    def has(self, path: str) -> bool:
        """Whether this file was refused before."""
        return path in self._files

    def note_success(self, codecs: Iterable[str]) -> None:
        """The device has decoded a file of each of these codecs: later refusals are those files'
        own."""
        self._proven.update(codecs)

    def note(self, path: str, *, codec: str, cause: str, is_sound: bool) -> bool:
        """Remember a refused file; true where its whole codec is to go to PyAV from now on.

        is_sound: PyAV could decode it, so that it tells something of the codec. cause: the
        decoder's words, for the log.
        """
        if path in self._files:
            return False
        self.num_files += 1
        self._files[path] = None
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        if self.num_files <= NUM_NAMED or str(self.num_files).strip("0") == "1":
            logger.warning(
                "the device's decoder refused %s (%s), PyAV decodes it now and from now on; %s so far: %s",
                path, codec, f"{self.num_files:,}", cause,
            )  # fmt: skip
        if not is_sound or codec in self._proven:
            return False
        self._failed[codec] += 1
        if self._failed[codec] != MAX_CODEC_REFUSALS:
            return False
        logger.warning(
            "%s goes to PyAV from now on: the device's decoder refused %d files of it and decoded none", codec, MAX_CODEC_REFUSALS
        )
        return True


def cause_of(error: RuntimeError) -> str:
    """The cause in DALI's error, between its traceback of the graph and its closing remarks, in one
    line."""
    text = str(error).rpartition("encountered:")[2].partition("C++ context")[0]
    return " ".join(text.split())[:300]
