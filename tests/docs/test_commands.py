"""No command of README or docs/ can be wrong: programs, options, recipe keys, names of files."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import Block, check_command, commands_of, list_pages, read_blocks

PAGES = list_pages()
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
OURS = re.compile(r"(?:mats|bash launch\.sh|deepspeed|python (?:mats_ds|profiling)/\S+) ")


def test_the_pages_have_blocks_of_every_kind():
    assert {"bash", "python", "json"} <= {block.language for block in BLOCKS}
    assert len([block for block in BLOCKS if block.language == "bash" and not block.reason]) > 20


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("bash", "console")], ids=lambda block: block.name)
def test_commands_are_taken_by_their_programs(block, capsys):
    for command in commands_of(block):
        try:
            check_command(command)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{block.name}: {command}\n{error}\n{capsys.readouterr().err}")


def test_python_can_be_compiled():
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.name, "exec")


def test_a_command_without_a_language_is_on_no_page_of_docs():
    """It would be neither run nor parsed. (A synopsis with [brackets] or CAPITALS is no
    command.)"""
    hidden = [
        f"{block.name}: {line}"
        for block in BLOCKS
        if block.language not in ("bash", "console") and block.page.name != "README.md"
        for line in block.text.splitlines()
        if OURS.match(line) and "[" not in line
    ]
    assert hidden == []


@pytest.mark.parametrize(
    "command",
    [
        "mats pretrain --recipy tiny",
        "mats pretrain --recipe tinny",
        "mats pretrain --recipe tiny optim.base_rl=1e-3",
        "mats finetune --recipe tiny",
        "mats pretrain --ds_config zero2_tinny",
        "mats prepare chek videos",
        "mats evaluate --model runs/x",
        "mats frobnicate",
        "python mats_ds/pretrian.py --recipe tiny",
        "deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config zero2 optim.epoch=3",
        "unknown-program",
    ],
)
def test_a_wrong_command_is_found(command):
    with pytest.raises((SystemExit, ValueError, ImportError)):
        check_command(command)


def test_what_does_not_run_says_why(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- run: skip, eight GPUs -->\n```bash\nmats plan\n```\n\n```bash\nmats \\\n  plan  # a\n```\n")
    first, second = (Block(b.page, b.line, b.language, b.text, b.reason) for b in read_blocks(page))
    assert (first.reason, second.reason, second.line) == ("eight GPUs", "", 6)
    assert [" ".join(command.split()) for command in commands_of(second)] == ["mats plan # a"]
