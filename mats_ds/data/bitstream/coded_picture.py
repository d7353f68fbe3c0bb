"""The facts in the header of a coded picture, for every codec alike."""

from __future__ import annotations

from typing import NamedTuple


class CodedPicture(NamedTuple):
    """Pictures are shown by ascending (epoch, order). is_key: decoding can begin here, and every
    picture that is shown at or after this one comes out right. is_shown: false for one that only
    serves as reference.
    """

    epoch: int
    order: int
    is_key: bool
    is_shown: bool = True
