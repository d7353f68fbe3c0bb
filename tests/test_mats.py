"""The console command: verbs, help, version, the nearest verb; what runs in this process and what
on ranks."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mats_ds
from mats_ds import __main__ as mats
from mats_ds import launch

PACKAGE = Path(mats_ds.__file__).parent


@pytest.fixture
def dry(monkeypatch, capsys):
    """A function that returns the words of the one command that a verb would run, on a machine
    without a GPU."""
    monkeypatch.setenv("MATS_DRY_RUN", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "list_gpus", lambda: [])

    def run(*words: str) -> list[str]:
        assert mats.main(list(words)) == 0
        (line,) = capsys.readouterr().out.splitlines()
        return shlex.split(line)[1:]

    return run


@pytest.mark.parametrize("verb", mats.ON_RANKS)
def test_programs_of_several_ranks_go_to_the_launcher(dry, verb):
    for words in ([verb], ["launch", verb]):
        command = dry(*words, "--num_gpus", "3", "--model", "my run")
        assert command[command.index("--num_gpus") + 1] == "3" and f"{PACKAGE}/{verb}.py" in command
        assert command[-2:] == ["--model", "my run"]
    for option in ("-h", "--help", "--video=a b.mp4"):
        assert dry(verb, "x", option) == [sys.executable, f"{PACKAGE}/{verb}.py", "x", option]
    assert dry(verb, "--video", "a b.mp4")[1:] == [f"{PACKAGE}/{verb}.py", "--video", "a b.mp4"]


@pytest.mark.parametrize("verb", mats.IN_ONE_PROCESS)
def test_other_programs_run_in_this_process(dry, verb):
    assert dry(verb, "a b", "$(x)") == [sys.executable, f"{PACKAGE}/{verb}.py", "a b", "$(x)"]
    assert (PACKAGE / f"{verb}.py").is_file()


def test_of_a_wheel_no_command_of_launch_sh_is_offered(monkeypatch, capsys, tmp_path):
    from mats_ds.core.storage import package_files

    monkeypatch.setattr(package_files, "PACKAGE", tmp_path / "mats_ds")
    assert mats.main(["tset"]) == 2
    message = capsys.readouterr().err
    assert "launch.sh" not in message and "test" not in message and all(verb in message for verb in mats.VERBS)


def test_in_a_checkout_launch_sh_is_named_by_its_path_from_here(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert mats.main(["x"]) == 2
    words = capsys.readouterr().err.partition("and with bash ")[2]
    assert Path(words.partition(": test setup")[0]).resolve() == PACKAGE.parent / "launch.sh"


@pytest.mark.parametrize(
    ("typed", "nearest"), [("tset", "test"), ("pretrian", "pretrain"), ("dmeo", "demo"), ("reports", "report"), ("x", None)]
)
def test_an_unknown_verb_names_the_nearest(capsys, typed, nearest):
    assert mats.main([typed]) == 2
    message = capsys.readouterr().err
    assert f"'{typed}'" in message and all(verb in message for verb in mats.VERBS)
    assert (f"did you mean '{nearest}'?" in message) if nearest else ("did you mean" not in message)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb_and_option_of_the_launcher(capsys, words):
    assert mats.main(words) == 0
    text = capsys.readouterr().out
    options = launch.WITH_VALUE | {"--no_ssh"}
    assert [word for word in (*mats.VERBS, *options, "MATS_DRY_RUN", "CUDA_VISIBLE_DEVICES") if word not in text] == []


def test_version(capsys):
    assert mats.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mats {mats_ds.__version__}\n"


def test_its_help_loads_nothing_heavy():
    code = (
        "import sys; from mats_ds.__main__ import main; main(['--help']); print(*{'torch', 'psutil', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_it_is_a_module_too():
    done = subprocess.run([sys.executable, "-m", "mats_ds", "--version"], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("mats "), done.stderr
