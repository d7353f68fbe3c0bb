"""Drawing pictures beside results: names as plain text, and an error in a picture never ends a run
that has its numbers.

with plain_drawing():              make and draw every text and label in here
    ...
try_to_draw(draw_it, path)         any error becomes one line, and False
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from mats_ds.core.storage.package_files import describe_missing
from mats_ds.core.text import clean_line, describe_error

logger = logging.getLogger("mats_ds")

LABEL_CHARACTERS, TITLE_CHARACTERS, TITLE_LINES = 40, 120, 4
# Overrides what a user's matplotlibrc may set: formulas in names, external programs and screens.
PLAIN = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}


@contextlib.contextmanager
def plain_drawing() -> Iterator[None]:
    """Matplotlib without mathtext: a dollar in a name is a dollar. Without warnings about
    characters that the font lacks."""
    from matplotlib import rc_context

    with rc_context(PLAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fit_label(name: object, *, most: int = LABEL_CHARACTERS) -> str:
    """A name of at most so many characters, for an axis: its end stays, where names differ."""
    return _fit(clean_line(name), most)


def fit_title(title: str) -> str:
    """The lines of a title, each short enough for a picture's width."""
    return "\n".join(_fit(clean_line(line), TITLE_CHARACTERS) for line in title.split("\n")[:TITLE_LINES])


def _fit(text: str, most: int) -> str:
    """The beginning and the end of a text that is longer than `most`."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[3 - most // 3 :]}"


def try_to_draw(draw: Callable[[], None], path: Path) -> bool:
    """Draw a picture that nobody's results depend on; False, with one line, where that fails in any
    way."""
    try:
        draw()
    except Exception as error:  # matplotlib, Pillow, fonts, memory, disk: the numbers are written already
        why = describe_missing(error) or f"{type(error).__name__}: {describe_error(error)}"
        logger.warning("warning: no picture %s: %s; all other results are there", path, why)
        return False
    return True
