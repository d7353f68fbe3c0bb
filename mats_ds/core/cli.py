"""Arguments of a program; a wrong one that is quoted in the error cannot speak for the program."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mats_ds.core.text import clean_line


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose error is one clean line: `bash launch.sh evaluate *` takes names of files for arguments."""

    def error(self, message: str) -> NoReturn:
        super().error(clean_line(message))
