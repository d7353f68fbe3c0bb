"""Texts of others as a person sees them: one clean line each, of bounded length, in any script."""

import io
import logging
import pickle
import subprocess
import sys

import pytest

from mats_ds.core.text import (
    LineFormatter,
    Lines,
    clean_line,
    clean_output,
    clean_page,
    describe_crash,
    describe_error,
    quote_word,
    say,
    tell_error,
)

ORDINARY = ["größe", "跑步", "कूदना", "ركض", "שלום", "👩‍🚀 🏃🏽", "e\u0301", "a b'c\"d\\e$f`g", "می\u200cروم"]
UNSAFE = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *map(chr, range(0x2028, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
    *"\xad\u061c\u200b\u200e\u200f\u2060\u2064\u206f\ufeff\ufffa\U0001d173\U000e0001\U000e0041",
]
NASTY = "a\nerror: all is lost\r\x1b[2J\x1b]0;title\x07\x9b31m\u202egpj\u2029\x00"


@pytest.mark.parametrize("name", ORDINARY)
def test_names_in_any_script_stay_as_they_are(name):
    assert clean_line(name) == clean_page(name) == clean_output(name) == name


@pytest.mark.parametrize("character", UNSAFE, ids=ascii)
def test_what_a_terminal_obeys_is_shown_as_an_escape(character):
    shown = clean_line(f"a{character}b")
    assert shown.startswith("a\\") and shown.endswith("b") and shown.isprintable()
    assert ("\n" if character == "\n" else shown) in clean_page(f"a{character}b")
    if character not in "\n":
        assert clean_output(f"a{character}b") == shown


def test_bytes_that_are_no_utf_8_are_shown_as_bytes():
    assert clean_line(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\xe9"
    assert clean_line("\ud83d").encode() == rb"\ud83d"


@pytest.mark.parametrize("text", ["x" * 10**8, "\x1b" * 4000, "\u202e" * 10**5], ids=["long", "escapes", "both"])
def test_a_text_without_end_is_cut_in_its_middle(text):
    shown = clean_line(f"begin {text} end")
    assert len(shown) < 4100 and shown.startswith("begin ") and shown.endswith(" end")
    assert f"{len(text) + 10:,} characters" in shown


def test_output_keeps_the_moves_of_a_progress_bar_and_leaves_colours_out():
    assert clean_output("\r 50%|█████     | 1/2\n") == "\r 50%|█████     | 1/2\n"
    assert clean_output("\n\x1b[A\x1b[A") == "\n\x1b[A\x1b[A"  # of the second of two bars
    assert clean_output("\x1b[93m [WARNING] \x1b[0m no libaio") == " [WARNING]  no libaio"
    assert clean_output("wrote a\rPASS\r\n") == "wrote a\\rPASS\r\n"


class TestLines:
    def test_keeps_its_own_lines_and_no_other(self):
        lines = Lines("2 mistakes:", f"  - {NASTY}", "mend them")
        assert len(lines.split("\n")) == 3 and lines.replace("\n", "").isprintable()

    def test_survives_an_exception_and_another_process(self):
        error = pickle.loads(pickle.dumps(ValueError(Lines("a\nb", "c"))))
        again = ValueError(str(error))
        assert describe_error(again) == "a\\nb\nc"
        assert describe_error(ValueError("a\nb")) == "a\\nb"

    def test_counts_what_is_too_much_and_keeps_the_last_line(self):
        many = Lines("head", *("y" * 10**5 for _ in range(5000)), "what to do")
        assert len(many) < 20_000 and many.startswith("head\n") and many.endswith("\nwhat to do")
        shown = sum(line.startswith("yyy") for line in many.split("\n"))
        assert f"({5000 - shown} more lines)" in many


def test_an_error_is_one_line_also_where_it_has_no_words(capsys):
    tell_error(ValueError(NASTY))
    tell_error(MemoryError())
    said = capsys.readouterr().err
    assert said.startswith(r"error: a\nerror: all is lost") and said.endswith("\nerror: MemoryError\n") and said.count("\n") == 2


def test_every_argument_of_say_is_a_line(capsys):
    say("one", NASTY, 3)
    said = capsys.readouterr().out
    assert said.count("\n") == 3 and said.replace("\n", "").isprintable()


def test_a_log_record_is_a_line_whatever_its_arguments_hold():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    logger.warning("unreadable: %s", NASTY)
    logger.warning(Lines("100% of", f"  {NASTY}"))
    try:
        raise RuntimeError(NASTY)
    except RuntimeError:
        logger.exception("broke on %s", NASTY)
    lines = stream.getvalue().split("\n")
    assert lines[1] == "100% of" and lines[4].startswith("Traceback") and all(map(str.isprintable, lines))
    assert not any(line.startswith("error:") for line in lines)


def test_a_traceback_is_clean_and_bounded():
    try:
        raise KeyError("k" * 10**6 + NASTY)
    except KeyError as error:
        told = describe_crash(error)
    assert told.startswith("Traceback") and len(told) < 10_000 and told.replace("\n", "").isprintable()
    assert len(describe_crash(ValueError("\n" * 10**6))) < 10_000


@pytest.mark.parametrize(
    "name", [*ORDINARY, NASTY.replace("\0", ""), "$(touch made)", "-x", "", "caf\udce9", "'\n\\'"], ids=ascii
)
def test_a_quoted_word_is_that_word_in_a_shell_and_safe_to_see(name):
    quoted = quote_word(name)
    assert clean_line(quoted) == quoted
    told = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert told.stdout == name.encode("utf-8", "surrogateescape") and not told.stderr


CRASH = """
import sys, warnings, logging
early = logging.getLogger("early"); early.addHandler(logging.StreamHandler(sys.stdout))   # as DeepSpeed's, made on import
from mats_ds.core.cli import run_script
name = "a\\x1b]0;t\\x07\\u202e"
def main():
    early.warning(name); print(name); warnings.warn(name + "\\nerror: no"); raise RuntimeError(name + "z" * 10**6)
sys.exit(run_script(main))
"""


def test_what_others_print_passes_the_net():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, env={"PYTHONIOENCODING": "utf-8"}, cwd=".")
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1 and out == "a\\x1b]0;t\\x07\\u202e\n" * 2
    assert (
        "RuntimeError: a\\x1b]0;t" in err and "\nerror:" not in err and len(err) < 10_000 and err.replace("\n", "").isprintable()
    )
