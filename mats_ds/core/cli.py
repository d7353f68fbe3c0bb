"""Arguments and ending of a program: exit statuses, and one line of text for
what went wrong.

def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: convert(parse_arguments(arguments)))

if __name__ == "__main__":
    leave(main())

(Over 300 lines: what a parser refuses and what a program dies of end it by one rule.)
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mats_ds.core.interrupts import AGAIN, is_first_here, leave_quietly, raise_signals
from mats_ds.core.storage.package_files import describe_missing, help_command
from mats_ds.core.terminal import drop_notices, make_tolerant
from mats_ds.core.text import clean_line, describe_crash, describe_error, did_you_mean, find_nearest

FINISHED, RUN_ERROR, USAGE_ERROR = 0, 1, 2
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, to be started again
KILLED_BY_USER = 130  # as a shell has it after Ctrl-C
EXIT_SECONDS = 10.0
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # also those that web pages make of it
# of DeepSpeed's launcher, which stand before the program's file: those with a value, and others
LAUNCHER_WITH_VALUE = (
    "--num_gpus", "--num_nodes", "--hostfile", "--include", "--exclude", "--master_addr", "--master_port", "--launcher",
    "--launcher_args", "--ssh_port", "--node_rank",
)  # fmt: skip
LAUNCHER_SWITCHES = ("--no_ssh", "--force_multi", "--no_ssh_check", "--bind_cores_to_rank")
LAUNCHER_OPTIONS = (*LAUNCHER_WITH_VALUE, *LAUNCHER_SWITCHES)
NUMBERS = {int: "a whole number", float: "a number"}
_notes: list[str] = []  # on the command line, said when the program has ended
_OUT_OF_MEMORY = (
    "outofmemoryerror",
    "out of memory",
    "out_of_memory",
    "can't allocate memory",
    "cannot allocate memory",
    "memoryerror",
)


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
        self._values: dict[str, list[str]] = {}  # of every option, in their order

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
        if os.environ.get("LOCAL_RANK", _rank()) == "0":
            for what, values in self._find_repeated(changes):
                _notes.append(f"{what} was given {len(values)} times, and the last one counted: {values[-1]}")
        return options

    def _find_repeated(self, changes: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The options and keys of a recipe that are given several times with other values, and
        those: a later one takes the place of those before, none adds to them."""
        given = {name: [*values] for name, values in (self._chosen() or self)._values.items()}
        for name, _, value in (change.partition("=") for change in changes):
            given.setdefault(name, []).append(value)
        return [(name, values) for name, values in given.items() if len(set(values)) > 1]

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings:
            self._values.setdefault(action.option_strings[0], []).append(" ".join(arg_strings))
        return super()._get_values(action, arg_strings)

    def _end(self, message: str) -> NoReturn:
        if os.environ.get("LOCAL_RANK", _rank()) == "0":
            program = clean_line((self._chosen() or self).prog)
            line = f"{_host()}{program}: error: {clean_line(message)} ({help_command(program)} lists all)"
            print(line, file=sys.stderr, flush=True)
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


class ProgramEnd(RuntimeError):
    """Ends a program with `status` and the line "LABEL: MESSAGE".

    Unless `is_local`, all ranks raise it together: the first rank of every host prints the line, as
    it may be the only one to know. A local end is printed by every rank that meets it.
    """

    status = RUN_ERROR
    label = "stopped"
    is_local = False


def run_script(work: Callable[[], int | None], *, advice: str | None = None, standing: Callable[[], str] = lambda: AGAIN) -> int:
    """The exit status of a program that does `work`; what ends it early is one line on stderr, and
    a bug a traceback.

    0, or what `work` returns; 2 for a ValueError, which is wrong input or arguments, and for a
    package that is not installed; the status of a ProgramEnd; 130 after Ctrl-C, and 128 + N after
    another signal N that asked it to end; 1 where memory ran out and for errors that nobody
    expected.

    advice: what to do after a fault of the machine (OSError), whose status then is 1. Without
    advice it counts as wrong input: an output that cannot be written, say. standing: asked after an
    interruption or such a fault, what is kept and how to go on.
    """
    make_tolerant()
    drop_notices()
    try:
        with raise_signals():
            status = _run_to_end(work, advice, standing)
            while _notes:  # an error of the user's has its line for itself
                note = _notes.pop(0)
                if status != USAGE_ERROR:
                    print(f"{_host()}note: {clean_line(note)}", file=sys.stderr, flush=True)
            return status
    except KeyboardInterrupt:  # another one, while the first was answered
        return KILLED_BY_USER


def _run_to_end(work: Callable[[], int | None], advice: str | None, standing: Callable[[], str]) -> int:
    try:
        status = work() or FINISHED
        _leave_ranks()
        return status
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        who = "stopped" if number == signal.SIGINT else f"stopped by {number.name}"
        kept = clean_line(str(error)) or standing()  # before the folder is released
        _release_folders()
        return _end(128 + number, f"{_host()}{who}: {kept}") if is_first_here() else 128 + number
    except ProgramEnd as error:
        if error.is_local:
            return _end(error.status, f"{_host()}{error.label}: rank {_rank()}: {describe_error(error)}")
        return _end_together(error.status, f"{error.label}: {describe_error(error)}")
    except ValueError as error:
        return _end_together(USAGE_ERROR, f"error: {describe_error(error)}")
    except OSError as error:
        if advice is None:
            return _end_together(USAGE_ERROR, f"error: {describe_error(error)}")
        how = advice if standing() == AGAIN else f"{advice}; {standing()}"
        return _end(RUN_ERROR, f"{_host()}stopped: rank {_rank()}: {describe_error(error)}; {how}")
    except Exception as error:
        if lacking := describe_missing(error):
            return _end_together(USAGE_ERROR, f"error: {lacking}")
        if not (isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error)):
            return _end(RUN_ERROR, describe_crash(error))
        first = clean_line(str(error).partition("\n")[0] or type(error).__name__)
        return _end(RUN_ERROR, f"{_host()}stopped: rank {_rank()} is out of memory: {first}")
    finally:
        _release_folders()
        sys.stdout.flush()


def leave(status: int) -> NoReturn:
    """End the process with this status, within EXIT_SECONDS: threads of a broken process group may
    not want to end."""
    leave_quietly(ignore=status not in (FINISHED, USAGE_ERROR))
    if status not in (FINISHED, USAGE_ERROR):
        timer = threading.Timer(EXIT_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()
    sys.exit(status)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or the outcome that a run recorded of it, says that the device or the host
    had no memory left."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return any(mark in text.lower() for mark in _OUT_OF_MEMORY)


def _is_dashed(word: str) -> bool:
    return word.startswith(tuple(DASHES))


def _end(status: int, line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return status


def _end_together(status: int, line: str) -> int:
    """As `_end` where all ranks do the same: the first of every host prints, and all leave the
    process group."""
    if is_first_here():
        print(f"{_host()}{line}", file=sys.stderr, flush=True)
    _leave_ranks()
    return status


def _rank() -> str:
    return clean_line(os.environ.get("RANK", "0"))


def _host() -> str:
    """The beginning of a line from a rank other than 0: its host."""
    return "" if _rank() == "0" else f"{clean_line(socket.gethostname())}: "


def _leave_ranks() -> None:
    """Leave the process group; without torch there is none."""
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _release_folders() -> None:
    """Let go of the folders that this process holds; it holds none where nobody has loaded the
    module."""
    if locks := sys.modules.get("mats_ds.core.storage.folder_lock"):
        locks.release_all_folders()
