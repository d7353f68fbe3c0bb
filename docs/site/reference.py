"""The pages that are read off the code: reference/recipe.md off the schemas, reference/options.md
off the parsers.

    python docs/site/reference.py            write them
    python docs/site/reference.py --check    status 1 where one is not what the code says

They are committed, so that they can be read without the site; a test runs the check.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mats_ds.config.finetune_recipe import FinetuneRecipe  # noqa: E402
from mats_ds.config.recipe import Recipe  # noqa: E402
from mats_ds.core.cli import ArgumentParser  # noqa: E402
from mats_ds.launch import DEFAULT_JSON  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
PAPER = re.compile(r"\s*\(arXiv (\d{4}\.\d{5}|\d{4}\.\d{4})\)")
PLAIN = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
BOUNDS = {"Ge": "at least {}", "Gt": "above {}", "Le": "at most {}", "Lt": "below {}"}
PROGRAMS = (
    *("prepare", "plan", "pretrain", "finetune", "evaluate", "extract", "probe", "visualize", "convert", "report"),
    *("demo", "docs"),
)
NOTICE = "<!-- Written by docs/site/reference.py: change the code, then run it again. -->"


class Parsed(BaseException):
    """Ends a program as soon as its parser is complete; no handler of errors takes it."""

    def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace | None) -> None:
        self.parser, self.options = parser, options


@contextmanager
def stopped_at_the_parser(*, reads: bool) -> Iterator[None]:
    """Within it, a program's `main` raises Parsed instead of doing anything: with its parser, or,
    where it `reads` its arguments, with the options as well."""
    names = ("parse_args", "parse_intermixed_args")
    kept = {name: getattr(ArgumentParser, name) for name in names}

    def stop_in(name: str) -> Callable[..., Any]:
        def stop(self, args=None, namespace=None):
            raise Parsed(self, kept[name](self, args, namespace) if reads else None)

        return stop

    for name in names:
        setattr(ArgumentParser, name, stop_in(name))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(ArgumentParser, name, method)


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of mats_ds/PROGRAM.py."""
    main = importlib.import_module(f"mats_ds.{program}").main
    try:
        with stopped_at_the_parser(reads=False):
            main([])
    except Parsed as end:
        return end.parser
    raise AssertionError(f"{program} has not parsed anything")


def options_of(program: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as the program reads them. Raises SystemExit for wrong ones."""
    main = importlib.import_module(f"mats_ds.{program}").main
    try:
        with stopped_at_the_parser(reads=True):
            main(list(arguments))
    except Parsed as end:
        return end.options
    raise AssertionError(f"{program} has not parsed anything")


def cell(text: str) -> str:
    """A text as a cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def code(value: Any) -> str:
    """A value as YAML writes it, as code."""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def describe_type(kind: Any) -> str:
    """The values that a key takes, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        kinds = [PLAIN[item] for item in inner if item is not Ellipsis]
        return f"list of {kinds[0]}s" if Ellipsis in inner else f"list of {len(kinds)} {kinds[0]}s"
    if origin is not None and (origin is Union or origin.__name__ == "UnionType"):
        return " or ".join(describe_type(item) for item in inner)
    return PLAIN[kind]


def describe_bounds(field: Any) -> str:
    """The bounds of a number, in words."""
    found = [(type(mark).__name__, mark) for mark in field.metadata]
    words = [BOUNDS[name].format(f"{getattr(mark, name.lower()):,}") for name, mark in found if name in BOUNDS]
    return f", {' and '.join(words)}" if words else ""


def list_keys(section: Any) -> list[str]:
    """The table of a section's keys. Raises ValueError for a key without a meaning."""
    rows = ["| key | values | default | meaning | paper |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if not field.description:
            raise ValueError(f"{section.__name__}.{name} has no description")
        papers = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in PAPER.findall(field.description))
        meaning = PAPER.sub("", field.description)
        values = describe_type(field.annotation) + describe_bounds(field)
        rows.append(f"| `{name}` | {cell(values)} | {code(field.default)} | {cell(meaning)} | {papers} |")
    return rows


def sections_of(schema: type[Recipe]) -> dict[str, Any]:
    """The sections of a recipe by name."""
    return {name: field.annotation for name, field in schema.model_fields.items() if hasattr(field.annotation, "model_fields")}


def describe_section(name: str, section: Any) -> list[str]:
    first = (section.__doc__ or "").split("\n\n")
    return [f"## {name}", "", *(re.sub(r"\s+", " ", part).strip() + "\n" for part in first), *list_keys(section), ""]


def write_recipe_page() -> str:
    """reference/recipe.md."""
    pretrain, finetune = sections_of(Recipe), sections_of(FinetuneRecipe)
    lines = [
        "# Recipe keys",
        "",
        NOTICE,
        "",
        "A recipe is a YAML file of the sections below. On the command line a key is `section.key=value`, for example",
        "`optim.base_lr=1e-3`. What is not given has the default; the shipped recipes ([mats_ds/recipes](../../mats_ds/recipes))",
        "set what their data set needs. All mistakes are reported at once. Beside the sections there is `name`, which begins the",
        "names of run folders.",
        "",
        *(line for name, section in pretrain.items() for line in describe_section(name, section)),
        "## Only in fine-tuning",
        "",
        "Three more sections, and other defaults in two:",
        "",
        "| key | default in fine-tuning |",
        "|---|---|",
    ]
    for name, section in pretrain.items():
        for key, field in section.model_fields.items():
            other = finetune[name].model_fields[key]
            if other.default != field.default:
                lines.append(f"| `{name}.{key}` | {code(other.default)} |")
    lines += [
        "",
        "`selection.keep_ratio` is then the fraction of the tokens that the encoder sees, and `selection.visible_ratio` has no",
        "meaning.",
        "",
    ]
    lines += [line for name in finetune if name not in pretrain for line in describe_section(name, finetune[name])]
    return "\n".join(lines).rstrip() + "\n"


def describe_action(parser: argparse.ArgumentParser, action: argparse.Action, *, json_name: str | None = None) -> str | None:
    """A row for an option or argument; None for a hidden one. json_name: the DeepSpeed JSON that
    `mats` takes where none is named."""
    if action.help is argparse.SUPPRESS or isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
        return None
    if action.metavar is not None:
        value = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    else:
        value = "" if action.choices or action.nargs == 0 else action.dest.upper()
    if action.choices:
        value = " or ".join(map(str, action.choices))
    if not action.option_strings:
        name = f"`{action.metavar or action.dest}`"
        value = ""
    else:
        # `--weights-from` is `--weights_from` spelled otherwise, `--model` is another name
        spelled = {option.lstrip("-").replace("-", "_"): option for option in reversed(action.option_strings)}
        name = ", ".join(f"`{option}`" for option in reversed(spelled.values()))
    needed = " **needed**" if action.required and action.option_strings else ""
    if json_name and "--ds_config" in action.option_strings:
        needed = f" (default of `mats` and `launch.sh`: {json_name.removesuffix('.json')}; **needed** under other launchers)"
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    several = " ..." if action.nargs in ("+", "*") else ""
    return f"| {name} | {cell(f'`{value}{several}`' if value else '')} | {cell(text)}{needed} |"


def describe_parser(parser: argparse.ArgumentParser, *, json_name: str | None = None) -> list[str]:
    rows = [row for action in parser._actions if (row := describe_action(parser, action, json_name=json_name))]
    return ["| option | value | meaning |", "|---|---|---|", *rows, ""]


def write_options_page() -> str:
    """reference/options.md."""
    lines = [
        "# Options",
        "",
        NOTICE,
        "",
        "Every option of every command; `mats COMMAND --help` prints the same. `--short-side` and `--short_side` are one option.",
        "What all commands have in common: [exit statuses](exit-statuses.md), [environment variables](environment.md).",
        "",
    ]
    for program in PROGRAMS:
        parser = parser_of(program)
        subparsers = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        lines += [f"## {program}", ""]
        if subparsers is None:
            lines += [*describe_parser(parser, json_name=DEFAULT_JSON.get(program))]
            continue
        described = {choice.dest: choice.help for choice in subparsers._choices_actions}
        for name, inner in subparsers.choices.items():
            lines += [f"### {program} {name}", "", f"{described[name]}", "", *describe_parser(inner)]
    help_lines = (ROOT / "mats_ds" / "commands.txt").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(help_lines) if line.startswith("Several machines"))
    end = next(number for number, line in enumerate(help_lines) if line.startswith("Environment"))
    lines += [
        "## Starting the ranks",
        "",
        "`pretrain`, `finetune`, `evaluate` and `extract` also take the options of the launcher:",
        "",
    ]
    lines += ["```text", *help_lines[start:end], "```"]
    return "\n".join(lines).replace("```\n\n```", "```").rstrip() + "\n"


PAGES = {"recipe.md": write_recipe_page, "options.md": write_options_page}


def main() -> int:
    """Write the pages, or check them."""
    parser = ArgumentParser(description="Write the pages of the reference that are read off the code.")
    parser.add_argument("--check", action="store_true", help="only say which are out of step")
    check = parser.parse_args().check
    stale = []
    for name, write in PAGES.items():
        path, text = REFERENCE / name, write()
        if check and path.read_text(encoding="utf-8") != text:
            stale.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of step with the code: {', '.join(stale)}: run  python docs/site/reference.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
