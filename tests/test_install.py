"""launch.sh and the environment that it finds or makes, with stand-ins for nvidia-smi and uv;
mostly only what it would run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import install
from mats_ds.__main__ import OF_LAUNCH_SH, VERBS
from tests.project_copy import ROOT, Project, is_running, wait_for, write_program


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def write_bare_python(project: Project) -> Path:
    """A Python without packages."""
    return write_program(project.tools / "bare" / "bin" / "python", f'exec "{sys.executable}" -I -S "$@"')


@pytest.mark.parametrize("name", ["launch.sh", "slurm.sbatch", ".ci/run"])
def test_is_valid_bash(name):
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


def test_launch_sh_stays_short():
    assert len((ROOT / "launch.sh").read_text().splitlines()) < 150


class TestCommands:
    @pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",), ("demo", "--help")])
    def test_help_names_every_command_and_variable_without_a_python(self, project, arguments):
        done = project.run(*arguments, MATS_PYTHON="/no/python")
        assert done.returncode == 0 and done.stderr == ""
        for word in (*VERBS, *OF_LAUNCH_SH, "MATS_PYTHON", "MATS_DRY_RUN", "UV_TORCH_BACKEND=cpu", "UV_DEFAULT_INDEX"):
            assert word in done.stdout

    def test_an_unknown_command_installs_nothing(self, project):
        done = project.run("pretrian", MATS_PYTHON="", MATS_DRY_RUN="")
        assert done.returncode == 2 and "did you mean 'pretrain'?" in done.stderr and len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["demo", "no such folder"], "there is no folder no such folder"),
            (["demo", ".", ".."], "demo takes one folder, got 2"),
            (["setup", "--loked"], "setup takes --locked or nothing, got '--loked'"),
            (["reports"], "'report'"),
        ],
    )
    def test_a_mistake_is_an_error_before_anything_is_installed(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            install.check_command(arguments[0], arguments[1:])

    def test_arguments_arrive_as_they_are(self, project):
        (command,) = project.plan("prepare", "a b.mp4", "--x", "$(y)")
        assert command == [sys.executable, f"{project.root}/mats_ds/prepare.py", "a b.mp4", "--x", "$(y)"]

    def test_a_message_holds_nothing_that_a_terminal_obeys(self, project):
        done = project.run("\x1b[31m\x9b\x07\r", "x")
        assert done.returncode == 2 and not set("\x1b\x07\r\x9b") & set(done.stderr) and r"\x1b[31m\x9b\x07" in done.stderr
        assert len(project.run("x" * 100_000).stderr) < 400

    @pytest.mark.parametrize(
        ("arguments", "is_callers"),
        [(("report",), False), (("report", "--json"), False), (("report", "x"), True), (("plan",), True)],
    )
    def test_a_report_without_a_folder_looks_in_the_project(self, project, arguments, is_callers):
        text = "import os\ndef main():\n    print(os.getcwd())\n    return 3\n"
        (project.root / "mats_ds" / f"{arguments[0]}.py").write_text(text)
        done = project.run(*arguments, MATS_DRY_RUN="")
        assert (done.returncode, done.stdout) == (3, f"{project.caller if is_callers else project.root}\n")

    def test_a_folder_for_the_demo_is_the_callers(self, project):
        (project.caller / "my videos").mkdir()
        training, report = project.plan("demo", "my videos")
        assert f"data.manifest={project.caller}/my videos" in training and report[1] == f"{project.root}/mats_ds/report.py"

    def test_the_default_tests_leave_out_what_is_slow_or_needs_a_gpu(self, project):
        assert project.plan("test")[0][1:] == ["-m", "pytest", "-m", "not slow and not gpu", *install.SIDE_BY_SIDE]
        project.put_driver("13.0", 1)
        assert project.plan("test")[0][1:] == ["-m", "pytest", "-m", "not slow", *install.SIDE_BY_SIDE]
        assert project.plan("test", "-k", "a or b")[0][1:] == ["-m", "pytest", "-k", "a or b"]

    def test_it_may_be_called_through_a_link(self, project):
        (project.caller / "link").symlink_to(project.root / "launch.sh")
        done = subprocess.run(
            ["bash", "link", "plan"], cwd=project.caller, env=project.environment, capture_output=True, text=True
        )
        assert shlex.split(done.stdout)[2:] == [f"{project.root}/mats_ds/plan.py"]


class TestWhichEnvironment:
    def test_an_active_environment_that_holds_the_packages_is_used(self, project):
        environment = project.tools / "active"
        python = write_program(environment / "bin" / "python", f'exec "{sys.executable}" "$@"')
        for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            (command,) = project.plan("test", MATS_PYTHON="", **{variable: str(environment)})
            assert command[0] == str(python)

    def test_an_active_environment_that_lacks_some_is_left_alone(self, project):
        python = write_bare_python(project)
        done = project.run("setup", MATS_PYTHON="", VIRTUAL_ENV=str(python.parents[1]))
        assert done.returncode == 0
        assert "lacks torch, torchvision, deepspeed, timm, ...: making .venv instead" in done.stderr
        assert f"--python '{project.root}/.venv/bin/python'" in done.stdout

    def test_a_version_that_is_too_old_counts_as_lacking(self, project):
        text = (project.root / "pyproject.toml").read_text()
        (project.root / "pyproject.toml").write_text(text.replace('"einops>=0.8"', '"einops>=99.1"'))
        done = project.run("setup", MATS_PYTHON="", VIRTUAL_ENV=sys.prefix)
        assert "lacks einops>=99.1" in done.stderr

    def test_what_is_missing_is_read_from_pyproject(self):
        requirements = install.read_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        assert set(requirements) == {"dependencies", "cuda12", "cuda13", *install.EXTRAS}
        assert "torch>=2.9" in requirements["dependencies"] and "torch>=2.9,<2.11" in requirements["cuda12"]
        assert install.find_missing("no-such-package>=1") == "no-such-package" and install.find_missing("pytest>=1") is None

    def test_a_python_that_does_not_exist(self, project):
        done = project.run("setup", MATS_PYTHON="/no/python")
        assert done.returncode == 2 and "MATS_PYTHON=/no/python" in done.stderr and "3.10 to 3.14" in done.stderr

    def test_without_an_environment_a_dry_run_shows_the_installation_and_the_command(self, project):
        *_, last = project.plan("pretrain", "--out", "a b", MATS_PYTHON="")
        root = project.root
        assert last == [f"{root}/.venv/bin/python", f"{root}/mats_ds/__main__.py", "pretrain", "--out", "a b"]

    def test_neither_python_nor_uv(self, project):
        for tool in ("bash", "readlink", "dirname"):
            (project.tools / tool).symlink_to(shutil.which(tool))
        launch_sh = project.root / "launch.sh"
        launch_sh.write_text(launch_sh.read_text().replace(" /usr/bin/python3;", ";"))
        done = project.run("setup", MATS_PYTHON="", PATH=str(project.tools))
        assert done.returncode == 1 and "apt-get install python3-venv" in done.stderr


class TestInstalling:
    @pytest.mark.parametrize(
        ("cuda", "backend", "extra"),
        [
            (None, None, "cuda13"),
            ("12.2", None, "cuda12"),
            ("12", None, "cuda12"),
            ("13.0", None, "cuda13"),
            ("14.1", None, "cuda13"),
            ("12.2", "auto", "cuda12"),
            ("12.2", "cpu", "cuda13"),
            ("13.0", "cu128", "cuda12"),
            ("12.2", "cu130", "cuda13"),
        ],
    )
    def test_the_driver_chooses_the_builds_and_a_torch_backend_of_the_caller_wins(self, monkeypatch, cuda, backend, extra):
        monkeypatch.setattr(install, "find_driver_cuda", lambda: cuda)
        monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
        if backend:
            monkeypatch.setenv("UV_TORCH_BACKEND", backend)
        assert install.choose_build() == extra

    def test_a_driver_that_is_too_old_is_an_error(self, project):
        project.put_driver("11.4", 1)
        done = project.run("setup", MATS_PYTHON="")
        assert done.returncode == 1 and "CUDA 11.4" in done.stderr and "525" in done.stderr

    @pytest.mark.parametrize(("cuda", "extra"), [("12.2", "cuda12"), ("13.0", "cuda13")])
    def test_locked_takes_the_versions_of_the_lock_and_nothing_else(self, project, cuda, extra):
        project.put_driver(cuda, 1)
        write_program(project.tools / "uv", "echo uv")
        *_, export, versions, package = project.plan("setup", "--locked", MATS_PYTHON="")
        assert {"export", "--frozen", "--no-emit-project", extra, *install.EXTRAS} <= set(export)
        assert versions[-3:] == ["--require-hashes", "-r", export[-1]]
        assert package[-4:] == ["--no-deps", "--no-build-isolation", "--editable", "."]

    def test_uv_is_fetched_where_there_is_none(self, project):
        project.environment["PATH"] = f"{project.tools}:/usr/bin:/bin"
        # a shim of a version manager that leads nowhere
        write_program(project.tools / "uv", "exit 1")
        make, fetch, venv, *_ = project.plan("setup", MATS_PYTHON="")
        assert make[1:3] == ["-m", "venv"] and fetch[0] == f"{make[3]}/bin/python" and fetch[-1] == "uv"
        assert venv[:2] == [f"{make[3]}/bin/uv", "venv"]


class TestSecondRun:
    """With a stand-in for uv that makes an environment out of this Python and notes each call."""

    @pytest.fixture
    def installing(self, project):
        calls = project.tools / "calls"
        python = f'#!/bin/sh\\nexec "{sys.executable}" "$@"\\n'
        make = f'mkdir -p "$5/bin"; printf \'{python}\' > "$5/bin/python"; chmod +x "$5/bin/python"'
        write_program(project.tools / "uv", f'echo "$@" >> "{calls}"\nif [ "$1" = venv ]; then {make}; fi')
        project.environment |= {"MATS_DRY_RUN": "", "MATS_PYTHON": ""}

        def setup(**environment) -> int:
            calls.write_text("")
            done = project.run("setup", **environment)
            assert done.returncode == 0, done.stderr
            return calls.read_text().count("pip install")

        project.setup = setup
        return project

    def test_installs_nothing_in_under_a_second(self, installing):
        assert installing.setup() == 1
        before = os.times()
        assert installing.setup() == 0
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        assert spent < 1, "of the processor: the machine may be busy"

    def test_installs_again_after_the_requirements_changed(self, installing):
        installing.setup()
        with (installing.root / "pyproject.toml").open("a") as file:
            file.write("# changed\n")
        assert installing.setup() == 1
        assert installing.setup() == 0

    def test_cuda_13_builds_are_replaced_under_a_cuda_12_driver_and_not_the_other_way_round(self, installing):
        installing.put_driver("13.0", 1)
        assert installing.setup() == 1
        installing.put_driver("12.8", 1)
        assert installing.setup() == 1
        installing.put_driver("13.0", 1)
        assert installing.setup() == 0

    def test_a_folder_of_that_name_that_is_no_environment_stays(self, installing):
        folder = installing.root / ".venv"
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
        done = installing.run("setup")
        assert done.returncode == 2 and "thesis.tex" in done.stderr and "another name" in done.stderr
        assert (folder / "thesis.tex").read_text() == "mine"

    def test_a_half_made_environment_is_made_anew(self, installing):
        (installing.root / ".venv" / "bin").mkdir(parents=True)
        (installing.root / ".venv" / "bin" / "python").write_text("torn")
        assert installing.setup() == 1

    def test_uv_reads_no_settings_of_the_callers_folder(self, installing):
        """A uv.toml there could name another package index."""
        installing.setup()
        lines = (installing.tools / "calls").read_text().splitlines()
        lines = [line for line in lines if line.startswith(("venv", "pip install"))]
        assert len(lines) == 2 and all(f"--directory {installing.root}" in line for line in lines)

    def test_a_killed_launch_sh_leaves_no_installation_running(self, installing):
        pid_file = installing.tools / "pid"
        write_program(
            installing.tools / "uv",
            f'[ "$1" = venv ] || exit 0\necho $$ > "{pid_file}.part"\nmv "{pid_file}.part" "{pid_file}"\nexec sleep 600',
        )
        launch = subprocess.Popen(
            ["bash", str(installing.root / "launch.sh"), "setup"], cwd=installing.caller, env=installing.environment
        )
        wait_for(pid_file.exists, launch)
        launch.kill()
        launch.wait()
        wait_for(lambda: not is_running(int(pid_file.read_text())))

    def test_a_failed_installation_is_tried_again(self, installing):
        good = (installing.tools / "uv").read_text().partition("\n")[2]
        write_program(installing.tools / "uv", 'if [ "$1" = pip ]; then exit 1; fi\n' + good)
        done = installing.run("setup")
        assert done.returncode == 1 and "UV_DEFAULT_INDEX" in done.stderr
        write_program(installing.tools / "uv", good)
        assert installing.setup() == 1


def test_no_module_of_the_callers_folder_is_taken(project):
    for name in ("ast", "hashlib", "mats_ds", "re", "psutil"):
        (project.caller / f"{name}.py").write_text("open('taken', 'w').close()\nraise SystemExit(9)\n")
    project.plan("pretrain", "--out", "x", **{"PYTHONPATH": ""})
    assert not (project.caller / "taken").exists() and os.listdir(project.caller)
