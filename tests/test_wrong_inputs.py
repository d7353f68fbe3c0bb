"""Wrong input to every program: one error without a traceback, and what it offers instead exists:
the option in that program's help, the key in the schema, the name among the files that ship."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from mats_ds.config.ds_config import list_json_names
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import list_keys, list_recipes, load_recipe
from mats_ds.core.gpus import GPUS
from mats_ds.core.storage.file_kind import describe_file
from mats_ds.core.storage.package_files import list_names

KEYS = list_keys(FinetuneRecipe)
PROGRAMS = ("pretrain", "finetune", "evaluate", "extract", "convert", "probe", "visualize", "plan", "report", "prepare check")


@pytest.fixture
def run(capsys, monkeypatch):
    """`run("mats verb", *words)` -> exit status and stderr of a program in this process."""

    def run_program(program: str, *words: object) -> tuple[int, str]:
        verb, *task = program.split()
        arguments = [*task, *map(str, words)]
        monkeypatch.setattr(sys, "argv", [f"mats {verb}", *arguments])
        capsys.readouterr()
        try:
            status = importlib.import_module(f"mats_ds.{verb}").main(arguments)
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run_program


@pytest.fixture
def options_of(run, capsys, monkeypatch):
    """The options in a program's help."""

    def read(program: str) -> set[str]:
        verb, *task = program.split()
        monkeypatch.setattr(sys, "argv", [f"mats {verb}"])
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(f"mats_ds.{verb}").main([*task, "--help"])
        return set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))

    return read


@pytest.fixture
def files(tmp_path, monkeypatch, write_video):
    """A folder with a file of every kind, which is the current one."""
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "video.mp4", num_frames=8)
    (tmp_path / "table.csv").write_text("path,label\nvideo.mp4,0\n")
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 1}')
    (tmp_path / "recipe.yaml").write_text("name: mine\noptim:\n  epochs: 3\n  warmup_epochs: 1\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "folder").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    return tmp_path


def one_error(told: str) -> str:
    """The text of the only error."""
    assert "Traceback" not in told and told.count("error:") == 1, told
    return told.partition("error:")[2].strip()


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_option_is_offered_one_that_the_program_has(run, options_of, program):
    options = options_of(program)
    for option in sorted(options - {"--help"}):
        letters = option[2:]
        for wrong in (f"--{letters[:-1]}{letters[-2:]}z", f"-{letters}", f"–{letters}", f"--{letters.upper()}x"):
            status, told = run(program, wrong, "7")
            assert status == 2
            offered = re.search(r"did you mean (--[\w-]+)", one_error(told))
            assert offered and offered[1] in options, f"{wrong}: {told}"
    status, told = run(program, "--" + "x" * 300)
    assert status == 2 and "unknown option" in one_error(told) and "did you mean" not in told


@pytest.mark.parametrize("program", ["pretrain", "finetune", "evaluate", "extract"])
@pytest.mark.parametrize("wrong", ["--optim.base_lr=3", "--no_such_option"])
def test_the_option_that_the_launcher_adds_is_never_named(run, program, wrong):
    status, told = run(program, "--local_rank=0", wrong)
    assert status == 2 and wrong in one_error(told) and "local_rank" not in told
    status, told = run(program, "--local_rank=0")
    assert status == 2 and "required" in one_error(told) and "local_rank" not in told


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_value_is_shown_where_it_belongs(run, options_of, program):
    if "--out" not in options_of(program):
        pytest.skip("it writes nowhere that is named")
    status, told = run(program, "--out")
    assert status == 2 and re.match(r"--out needs a value: --out [A-Z]+", one_error(told))


@pytest.mark.parametrize("program", ["pretrain", "finetune", "plan"])
@pytest.mark.parametrize(
    ("words", "corrected"),
    [
        (["--optim.base_lr=1e-3"], "drop the dashes: optim.base_lr=1e-3"),
        (["--optim.base_lr", "1e-3"], "drop the dashes: optim.base_lr=1e-3"),
        (["-optim.base_lr=1e-3"], "drop the dashes: optim.base_lr=1e-3"),
        (["--optim.base-lr=1e-3"], "drop the dashes: optim.base_lr=1e-3"),
        (["--base_lr=1e-3"], "did you mean optim.base_lr=1e-3?"),
        (["recipe=tiny"], "did you mean --recipe=tiny?"),
    ],
)
def test_a_key_with_dashes_and_an_option_without(run, program, words, corrected):
    given = [] if program == "plan" else ["--recipe", "tiny", "--ds_config", "zero2"]
    status, told = run(program, *given, *words)
    assert status == 2 and corrected in one_error(told)


@pytest.mark.parametrize(
    ("words", "corrected"),
    [
        (["optim.steps", "=", "20"], "optim.steps=20"),
        (["optim.steps=", "20"], "optim.steps=20"),
        (["optim.steps", "=20"], "optim.steps=20"),
        (["optim.steps", "20"], "optim.steps=20"),
        (["optim.steps:20"], "optim.steps=20"),
        (["optim.step:20"], "optim.steps=20"),
        (["data.manifest", "=", "my videos.csv"], "'data.manifest=my videos.csv'"),
        (["tiny"], "--recipe tiny"),
        (["other.yaml"], "--recipe other.yaml"),
        (["zero2"], "--ds_config zero2"),
        (["optim.steps"], "optim.steps=VALUE"),
        (["steps=20"], "did you mean optim.steps?"),
        (["optim.stesp=20"], "did you mean optim.steps?"),
        (["Optim.Steps=20"], "did you mean optim"),
        (["selection.strategy=Mats"], "did you mean mats?"),
        (["finetune.weights=x"], "pre-training"),
        (["data.root="], "data.root=null"),
        (["optim.steps= "], "optim.steps=null"),
    ],
)
def test_a_change_to_a_recipe_in_other_words_is_corrected(words, corrected):
    with pytest.raises(ValueError) as caught:
        load_recipe("tiny", words)
    assert corrected in str(caught.value) and "1 mistake in" in str(caught.value)
    if re.fullmatch(r"optim\.\w+=\d+", corrected):
        assert load_recipe("tiny", ["optim.warmup_steps=1", corrected]).optim.steps == 20


@pytest.mark.parametrize("wrong", [["extra"], ["--shard-sizs", "1GB"], ["--shard_size"]])
def test_the_help_of_the_task_is_offered(run, wrong):
    status, told = run("prepare pack", "nowhere", "--out", "a", *wrong)
    assert status == 2 and "prepare pack --help" in one_error(told)


def test_a_command_without_force_does_not_offer_it(run, files, options_of, monkeypatch):
    import mats_ds.report

    monkeypatch.setattr(mats_ds.report, "_read_named", lambda folder: None)
    status, told = run("report", "--compare", "a", "b", "--html", "table.csv")
    assert status == 2 and "table.csv exists" in one_error(told)
    assert "--force" not in told and "--force" not in options_of("report")


def test_every_offered_key_exists():
    for key in KEYS:
        section, _, name = key.partition(".")
        wrong = f"{section}.{name[:-1]}{name[-2:]}"
        if wrong in KEYS:
            continue
        with pytest.raises(ValueError) as caught:
            load_recipe("finetune_tiny", [f"{wrong}=1"], schema=FinetuneRecipe)
        offered = re.search(r"did you mean ([\w.]+)\?", str(caught.value))
        assert offered and offered[1] in KEYS, caught.value


@pytest.mark.parametrize(
    ("option", "known"),
    [("--recipe", list_recipes()), ("--ds_config", list_json_names()), ("--gpu", list(GPUS))],
)
def test_a_wrong_name_is_offered_one_that_works_here(run, files, option, known):
    for name in known:
        for wrong in {f"{name[:-1]}{name[-2:]}", f"{name}x", f"no_such_folder/{name}x.yaml"} - set(known):
            if option == "--gpu" and "/" in wrong:
                continue
            status, told = run("plan", option, wrong)
            offered = re.search(r"did you mean ([\w-]+)\?", one_error(told))
            assert status == 2 and offered and offered[1] in known, told
        status, told = run("plan", option, f"{known[0]}x")
        offered = re.search(r"did you mean ([\w-]+)\?", told)[1]
    # and what is offered works from where the user stands
    given = {"--recipe": "tiny", "--ds_config": "zero2_tiny", option: offered}
    assert run("plan", *(word for pair in given.items() for word in pair))[0] in (0, 1)


def test_a_wrong_budget_is_offered_a_known_one(run, files):
    status, told = run("report", "--budget", "8xa100-80")
    assert status == 2 and "did you mean 8xa100-80g?" in told and "8xa100-80g" in list_names("budgets", suffix=".json")


TAKES = {  # program -> arguments that name a file of that kind, and files that are another
    "recipe": ("plan", "--recipe {}", ["video.mp4", "table.csv", "ds.json", "image.png", "weights.pth", "weights.safetensors"]),
    "JSON": ("plan", "--ds_config {}", ["video.mp4", "table.csv", "recipe.yaml", "image.png", "weights.pth", "folder"]),
    "videos": ("prepare check", "{} --out o.csv", ["video.mp4", "ds.json", "recipe.yaml", "image.png", "weights.pth"]),
    "annotation": ("prepare import", "{} --out o.csv", ["video.mp4", "image.png", "weights.pth", "weights.safetensors"]),
    "video": ("visualize", "{} --out o.png", ["table.csv", "ds.json", "recipe.yaml", "image.png", "weights.pth", "folder"]),
    "weights": ("convert", "{}", ["video.mp4", "table.csv", "recipe.yaml", "image.png"]),
    "run folder": ("report", "{}", ["video.mp4", "table.csv", "recipe.yaml", "image.png", "weights.pth", "folder"]),
    "budget": ("report", "--budget {}", ["video.mp4", "table.csv", "recipe.yaml", "image.png", "weights.pth", "folder"]),
    "records": ("plan", "--measured {}", ["video.mp4", "recipe.yaml", "folder"]),
}


@pytest.mark.parametrize("wanted", TAKES)
def test_a_file_of_another_kind_is_called_what_it_is(run, files, wanted):
    program, words, wrong = TAKES[wanted]
    for name in wrong:
        status, told = run(program, *words.format(name).split())
        error = one_error(told)
        assert status == 2 and name in error and wanted in error
        kind = describe_file(name)
        # a DeepSpeed JSON given as a recipe is also told its option
        assert kind in error or "given as --ds_config" in error, error
        assert not (files / "o.csv").exists() and not (files / "o.png").exists()


def test_a_missing_root_names_the_option_or_key_of_the_program(run, files):
    (files / "elsewhere.csv").write_text("path,label\nnowhere.mp4,0\n")
    for words in (["--root", "nowhere"], []):
        source = "table.csv" if words else "elsewhere.csv"
        status, told = run("prepare check", source, *words, "--out", "o.csv")
        assert status == 2 and "--root" in one_error(told) and "data.root" not in told
        key = [f"data.root={words[1]}"] if words else []
        status, told = run("plan", "--recipe", "tiny", "--ds_config", "zero2_tiny", f"data.manifest={source}", *key)
        assert status == 2 and "data.root" in one_error(told) and "--root" not in told


def test_a_video_without_a_label_is_not_sent_to_a_key_that_does_not_help():
    import numpy as np

    from mats_ds.data.classes import TRAINING_ADVICE, check_labels
    from mats_ds.data.manifest import Manifest

    def judge(labels, num_classes):
        nan = np.full(len(labels), np.nan)
        with pytest.raises(ValueError) as caught:
            check_labels(Manifest([f"{n}.mp4" for n in labels], np.array(labels), nan, nan), num_classes, advice=TRAINING_ADVICE)
        return str(caught.value)

    assert (
        "-1" in (told := judge([0, -1], 2)) and "num_classes" not in told and "1 of 2 videos" in told and "has no label" in told
    )
    assert "finetune.num_classes=8" in judge([0, 7], 2)


def test_what_a_program_takes_may_stand_on_both_sides_of_its_options(tmp_path):
    from mats_ds import convert, visualize

    assert convert.parse_arguments(["run", "--to", "hub", "folder"]).dest == "folder"
    assert visualize.parse_arguments(["a.mp4", "--out", "x.gif", "b.mp4"]).video == ["a.mp4", "b.mp4"]
