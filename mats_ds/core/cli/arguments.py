"""A command line -> options, or one clean line with what was probably meant.

parser = ArgumentParser(description="...", recipe_keys=RECIPE_KEYS)
parser.add_argument("--out", metavar="DIR", help="...")
options = parser.parse_args(arguments)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mats_ds.core.cli.endings import USAGE_ERROR, say_once
from mats_ds.core.storage.package_files import help_command
from mats_ds.core.text import clean_line, did_you_mean, find_nearest

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # also those that web pages make of it
# of DeepSpeed's launcher, which stand before the program's file: those with a value, and others
LAUNCHER_WITH_VALUE = (
    "--num_gpus", "--num_nodes", "--hostfile", "--include", "--exclude", "--master_addr", "--master_port", "--launcher",
    "--launcher_args", "--ssh_port", "--node_rank",
)  # fmt: skip
LAUNCHER_SWITCHES = ("--no_ssh", "--force_multi", "--no_ssh_check", "--bind_cores_to_rank")
LAUNCHER_OPTIONS = (*LAUNCHER_WITH_VALUE, *LAUNCHER_SWITCHES)
NUMBERS = {int: "a whole number", float: "a number"}


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, for which `--short-side` and `--short_side` are one option, and whose
    errors are one clean line with what was probably meant.

    recipe_keys: the keys `section.key` that the program takes as `section.key=value`, none where it
    takes no changes to a recipe. launcher: options that stand before the program, as DeepSpeed's
    launcher takes them. Of several ranks the first one of a host prints the error.
    """

    def __init__(self, *, recipe_keys: Sequence[str] = (), launcher: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.recipe_keys, self.launcher = tuple(recipe_keys), tuple(launcher)
        self._given: list[str] = []

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        return self._accept(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        self._given = [*(sys.argv[1:] if args is None else args)]
        return self._accept(*self.parse_known_intermixed_args(args, namespace))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        arguments = [*(sys.argv[1:] if args is None else args)]
        self._given = self._given or arguments
        end = arguments.index("--") if "--" in arguments else len(arguments)
        spelled = [self._spell_as_declared(argument) for argument in arguments[:end]]
        return super().parse_known_args(spelled + arguments[end:], namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with the message, or with the unknown option that has led to it."""
        unknown = [word for word in self._given if _is_dashed(word) and self._is_unknown(word)]
        if unknown and ("ignored explicit argument" in message or message.startswith(("the following arg", "one of the arg"))):
            message = self._describe_unknown(unknown)
        elif lacking := re.match(r"argument (\S+?)(?:/\S+)?: expected (?:one|at least one|\d+) arguments?$", message):
            message = f"{lacking[1]} needs a value{self._show_value(lacking[1])}"
        elif message.startswith("the following arguments are required") and (self.epilog or "").startswith("Example: "):
            message = f"{message}. {self.epilog.partition('. ')[0]}"
        self._end(message)

    def _accept(self, options: argparse.Namespace, left: Sequence[str]) -> argparse.Namespace:
        """The options, where no argument is left and none of the changes to a recipe is an option
        without its dashes."""
        changes = getattr(options, "overrides", [])
        wrong = [word for word in changes if _is_dashed(word) or f"--{word.partition('=')[0]}" in self._options()]
        typed = [word for word in self._given if _is_dashed(word) and not word.startswith("-")]
        wrong += [word for word in typed if word not in wrong and find_nearest(f"--{word.lstrip(DASHES)}", self._options())]
        if wrong or left:
            self._end(self._describe_unknown(wrong or left))
        return options

    def _end(self, message: str) -> NoReturn:
        program = clean_line((self._chosen() or self).prog)
        say_once(f"{program}: error: {clean_line(message)} ({help_command(program)} lists all)")
        sys.exit(USAGE_ERROR)

    def _chosen(self) -> ArgumentParser | None:
        """The parser of the subcommand that is given, whose help has its options; None without."""
        subcommands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        chosen = (parser for action in subcommands for name, parser in action.choices.items() if name in self._given)
        return next(chosen, None)

    def _describe_unknown(self, words: Sequence[str]) -> str:
        """The arguments that are not known, each with what it was probably meant to be."""
        others = [word for word in words if not _is_dashed(word)]
        options = [word for word in words if _is_dashed(word)]
        # `--batchsize 4`: the 4 is no fault of its own
        shown = [f"unknown option {word}{self._guess(word)}" for word in options]
        if not options:
            shown = [f"{word!r} is not expected{self._guess(word)}" for word in others]
        return ", ".join(shown)

    def _guess(self, word: str) -> str:
        """What to write instead of a wrong argument; empty where nothing is near."""
        name, equals, value = word.lstrip(DASHES).partition("=")
        if name in self.recipe_keys and not equals:
            after = self._given[self._given.index(word) + 1 :][:1] if word in self._given else []
            equals, value = "=", "".join(after if after and not _is_dashed(after[0]) else ["VALUE"])
        if "." in name and self.recipe_keys:
            key = find_nearest(name, self.recipe_keys, cutoff=0.8) or name
            return f": drop the dashes: {key}={value or 'VALUE'}"
        if "." in name and equals:
            return ": this program takes no keys of a recipe"
        if option := find_nearest(f"--{name}", (option for option in self._options() if option.startswith("--")), cutoff=0.7):
            return f"; did you mean {option}{'=' if equals else ''}{value}?"
        if option := find_nearest(f"--{name}", self.launcher, cutoff=0.8):
            return f": {option} is of DeepSpeed's launcher and stands before the program's file; mats takes it anywhere"
        if key := next((key for key in self.recipe_keys if key.rpartition(".")[2] == name.replace("-", "_")), None):
            return f"; did you mean {key}={value or 'VALUE'}?"
        return ""

    def _is_unknown(self, word: str) -> bool:
        name = word.partition("=")[0]
        same = name[2:].replace("-", "_")
        is_number = re.fullmatch(r"-\.?\d.*", word)
        return not is_number and not any(
            option == name or (name.startswith("--") and option[2:].replace("-", "_").startswith(same))
            # also those that the help leaves out, such as the --local_rank of DeepSpeed's launcher
            for option in (*self._option_string_actions, *self._options())
        )

    def _options(self) -> list[str]:
        """The options of this parser, and those of the subcommand that is given."""
        own = [name for name, action in self._option_string_actions.items() if action.help is not argparse.SUPPRESS]
        chosen = self._chosen()
        return [*own, *(chosen._options() if chosen else ())]

    def _show_value(self, option: str) -> str:
        """ ": --out DIR", as the help has it."""
        action = self._option_string_actions.get(option)
        if action is None:
            return ""
        metavar = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or option[2:].upper()
        return f": {option} {'|'.join(map(str, action.choices)) if action.choices else metavar}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"expected one of {', '.join(names)}, got {value!r}{hint}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in NUMBERS:
                raise
            raise argparse.ArgumentError(action, f"expected {NUMBERS[action.type]}, got {arg_string!r}") from None

    def _spell_as_declared(self, argument: str) -> str:
        """An option, perhaps abbreviated, with the hyphens and underscores of its declaration;
        anything else as it is."""
        name, equals, value = argument.partition("=")
        options = [option for option in self._option_string_actions if option.startswith("--")]
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            return argument
        same = name[2:].replace("-", "_")
        declared = (option for option in options if option[2:].replace("-", "_").startswith(same))
        return next(declared, name)[: len(name)] + equals + value


def _is_dashed(word: str) -> bool:
    return word.startswith(tuple(DASHES))
