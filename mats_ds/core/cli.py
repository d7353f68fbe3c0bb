"""Arguments of a program: an option is accepted with hyphens and with underscores, and an error is one clean line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mats_ds.core.text import clean_line


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, for which `--short-side` and `--short_side` are one option.

    A wrong argument that the error quotes is cleaned: `bash launch.sh evaluate *` takes names of files for arguments.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        arguments = [*(sys.argv[1:] if args is None else args)]
        end = arguments.index("--") if "--" in arguments else len(arguments)
        spelled = [self._spell_as_declared(argument) for argument in arguments[:end]]
        return super().parse_known_args(spelled + arguments[end:], namespace)

    def error(self, message: str) -> NoReturn:
        super().error(clean_line(message))

    def _spell_as_declared(self, argument: str) -> str:
        """An option, perhaps abbreviated, with the hyphens and underscores of its declaration; anything else as it is."""
        name, equals, value = argument.partition("=")
        options = [option for option in self._option_string_actions if option.startswith("--")]
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            return argument
        same = name[2:].replace("-", "_")
        declared = (option for option in options if option[2:].replace("-", "_").startswith(same))
        return next(declared, name)[: len(name)] + equals + value
