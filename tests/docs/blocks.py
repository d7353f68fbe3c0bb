"""Code blocks of the pages: what is in them, and whether each line is one that a program takes.

A block of bash, console or python runs, unless the line above it is `<!-- run: skip, REASON -->`:
it needs GPUs, a data set, an installation. What is skipped is still parsed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from mats_ds.config.ds_config import read_ds_config
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.storage.package_files import list_names
from mats_ds.launch import PROGRAMS, split_arguments

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SKIP = re.compile(r"<!-- run: skip, (.+?) -->")
# Not ours: said on a page, and not looked into.
OTHERS = {"pip", "source", "docker", "tensorboard", "wandb", "jupyter"}
IN_REPOSITORY = ("mats_ds/", "ds_configs/", "profiling/", "benchmarks/", "examples/", "tests/", "docs/")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `line` is that of its fence; `reason`: why it does not run."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def load_reference():
    """docs/site/reference.py, which is no module of a package."""
    spec = spec_from_file_location("docs_reference", DOCS / "site" / "reference.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def list_pages() -> list[Path]:
    """README and the pages of docs/ in the order in which they are read: those of mkdocs.yml."""
    named = re.findall(r"(?m)^ *- (?:[\w ]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return [ROOT / "README.md", *(DOCS / name for name in named)]


def read_blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, top to bottom."""
    lines = page.read_text(encoding="utf-8").splitlines()
    reason, number = "", 0
    while number < len(lines):
        line = lines[number]
        if match := SKIP.fullmatch(line.strip()):
            reason = match[1]
        elif line.startswith("```"):
            end = next(other for other in range(number + 1, len(lines)) if lines[other].startswith("```"))
            yield Block(page, number + 1, line[3:].strip(), "\n".join(lines[number + 1 : end]) + "\n", reason)
            reason, number = "", end
        elif line.strip():
            reason = ""
        number += 1


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block, one line each, as they are typed."""
    text = block.text.replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def check_command(command: str) -> None:
    """Raises ValueError, or SystemExit of its parser, for a command that no program takes."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    for word in words:
        if word.startswith(IN_REPOSITORY) and not (ROOT / word).exists():
            raise ValueError(f"there is no {word}")
    if words[0] == "docker" and "mats" in words:
        words = words[words.index("mats") :]
    if words[:2] == ["bash", "launch.sh"] or words[0] == "sbatch":
        words = ["mats", *words[2:]] if words[0] == "bash" else ["mats", *words[words.index("slurm.sbatch") + 1 :]]
        if words[1:2] in (["setup"], ["test"]):
            return
    if words[0] == "deepspeed":
        program = next(number for number, word in enumerate(words) if word.endswith(".py"))
        split_arguments(words[1:program])
        words = ["mats", Path(words[program]).stem, *words[program + 1 :]]
    if words[0] == "python" and words[1].startswith(("mats_ds/", "profiling/")):
        words = ["mats", Path(words[1]).stem, *words[2:]]
    if words[0] == "python":  # another program, or -c
        return compile(words[2], "<-c>", "exec") if words[1] == "-c" else None
    if words[0] != "mats":
        if words[0] not in OTHERS:
            raise ValueError(f"{words[0]} is neither ours nor in OTHERS of {__file__}")
        return None
    return check_verb(words[1], words[2:])


def check_verb(verb: str, arguments: list[str]) -> None:
    """Raises what `check_command` does for arguments that the verb does not take."""
    if verb in ("--version", "--help", "help", "scaling"):
        return
    if verb in PROGRAMS:
        arguments = split_arguments(arguments)[1]
        if verb in ("pretrain", "finetune") and "--ds_config" not in arguments:
            arguments = ["--ds_config", "zero2", *arguments]
    options = vars(load_reference().options_of(verb, arguments))
    if options.get("recipe"):
        load_recipe(options["recipe"], options["overrides"], schema=FinetuneRecipe if verb == "finetune" else Recipe)
    name = options.get("ds_config")
    if name and "/" not in name and not name.endswith(".json"):
        if name not in list_names("ds_configs", suffix=".json"):
            raise ValueError(f"there is no DeepSpeed JSON {name}")
        read_ds_config(name)
