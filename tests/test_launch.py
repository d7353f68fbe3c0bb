"""launch.sh from outside: a copy in a folder with a space, a stand-in for nvidia-smi, mostly only the commands it would run."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU_LINE = "GPU {0}: NVIDIA H100 80GB HBM3 (UUID: GPU-{0}{0}{0}{0}-aa)"


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Project:
    """A copy of launch.sh with a PATH and an environment of its own."""

    def __init__(self, folder: Path, *, root: str = "a project", caller: str = "the caller"):
        self.root = folder / root
        self.tools = folder / "tools"
        self.caller = folder / caller
        for path in (self.root, self.tools, self.caller):
            path.mkdir()
        for name in ("launch.sh", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "mats_ds").mkdir()
        shutil.copy(ROOT / "mats_ds" / "missing_packages.py", self.root / "mats_ds")
        self.environment = {"PATH": f"{self.tools}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "MATS_DRY_RUN": "1"}
        self.environment["MATS_PYTHON"] = sys.executable
        self.put_driver(None)

    def put_driver(self, cuda: str | None, gpus: int = 0) -> None:
        """A stand-in for nvidia-smi; None: one that finds no driver."""
        listed = "\n".join(GPU_LINE.format(index) for index in range(gpus))
        header = f"| NVIDIA-SMI 999.9    Driver Version: 999.9    CUDA Version: {cuda} |"
        body = "exit 9" if cuda is None else f'[ "$1" = -L ] && echo "{listed}" || echo "{header}"'
        write_script(self.tools / "nvidia-smi", body)

    def python_without_packages(self) -> str:
        return str(write_script(self.tools / "bare" / "bin" / "python", f'exec "{sys.executable}" -I -S "$@"'))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(self.root / "launch.sh"), *arguments],
            cwd=self.caller,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def plan(self, *arguments: str, **environment: str) -> list[list[str]]:
        """The commands that it would run, as lists of words."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("+ ")]

    def launch_plan(self, *arguments: str, **environment: str) -> tuple[list[str], list[str], list[str]]:
        """The one command on several ranks: its environment, the launcher's options, the script's arguments."""
        (command,) = [words for words in self.plan(*arguments, **environment) if "deepspeed.launcher.runner" in words]
        runner = command.index("deepspeed.launcher.runner")
        name = arguments[0] if arguments[0] in ("finetune", "evaluate", "extract") else "pretrain"
        script = command.index(f"{self.root}/mats_ds/{name}.py")
        return command[1 : runner - 2], command[runner + 1 : script], command[script + 1 :]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_is_valid_bash():
    subprocess.run(["bash", "-n", str(ROOT / "launch.sh")], check=True)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",), ("demo", "--help")])
def test_help_names_every_command_and_variable(project, arguments):
    done = project.run(*arguments)
    assert done.returncode == 0
    for word in (
        "demo",
        "test",
        "prepare",
        "pretrain",
        "finetune",
        "evaluate",
        "extract",
        "convert",
        "probe",
        "visualize",
        "report",
        "setup",
        "MATS_PYTHON",
        "MATS_DRY_RUN",
        "UV_TORCH_BACKEND=cpu",
    ):
        assert word in done.stdout
    used = set(re.findall(r"MATS_[A-Z_]+", (ROOT / "launch.sh").read_text()))
    assert used == {"MATS_PYTHON", "MATS_DRY_RUN"}, "document every variable in the help"


def test_what_is_told_holds_nothing_that_a_terminal_obeys(project):
    done = project.run("\x1b[31m\x9b\x07\r", "x")
    assert done.returncode == 2 and not set("\x1b\x07\r\x9b") & set(done.stderr) and "'?[31m???'" in done.stderr
    assert len(project.run("x" * 100_000).stderr) < 400


@pytest.mark.parametrize(
    ("typed", "nearest"), [("tset", "test"), ("pretrian", "pretrain"), ("dmeo", "demo"), ("reports", "report"), ("x", None)]
)
def test_an_unknown_command_names_the_nearest(project, typed, nearest):
    done = project.run(typed)
    assert done.returncode == 2
    assert f"'{typed}'" in done.stderr
    assert (f"did you mean '{nearest}'?" in done.stderr) if nearest else ("did you mean" not in done.stderr)


class TestDemo:
    def test_a_missing_folder_is_one_error_before_anything_is_installed(self, project):
        done = project.run("demo", "no such folder", MATS_PYTHON="")
        assert done.returncode == 2
        assert done.stderr == "launch.sh: demo: there is no folder no such folder\n"
        assert done.stdout == ""

    def test_two_folders_are_refused(self, project):
        assert project.run("demo", ".", "..").returncode == 2

    def test_trains_on_the_synthetic_set_and_reports(self, project):
        _, _, trainer = project.launch_plan("demo")
        assert trainer[:5] == ["--recipe", "mats_ds/recipes/tiny.yaml", "--ds_config", "ds_configs/zero2_tiny.json", "--out"]
        assert re.fullmatch(r"runs/demo-\d{8}-\d{6}", trainer[5])
        assert trainer[6:] == []
        report = project.plan("demo")[-1]
        assert report[1] == "profiling/report.py"
        assert report[2].startswith("runs/demo-")

    def test_a_new_line_in_its_name_is_refused(self, project):
        (project.caller / "two\nlines").mkdir()
        done = project.run("demo", "two\nlines")
        assert done.returncode == 2 and "a new line in the name of the folder $'two\\nlines'" in done.stderr

    def test_a_folder_is_the_callers(self, project):
        (project.caller / "my videos").mkdir()
        _, _, trainer = project.launch_plan("demo", "my videos")
        assert trainer[6:] == [f"data.manifest={project.caller}/my videos", "data.max_bad_fraction=0.5", "optim.steps=80"]

    @pytest.mark.parametrize("name", ["a: b", "it's # one", "[x]", "a "])
    def test_a_folder_that_yaml_would_misread_arrives(self, project, name):
        from mats_ds.config.load import load_recipe

        (project.caller / name).mkdir()
        _, _, trainer = project.launch_plan("demo", name)
        assert load_recipe("default", trainer[6:]).data.manifest == f"{project.caller}/{name}"


class TestRanks:
    def test_two_cpu_ranks_without_a_gpu(self, project):
        environment, launcher, trainer = project.launch_plan("pretrain", "--out", "x")
        assert "DS_ACCELERATOR=cpu" in environment
        assert any(re.fullmatch(r"OMP_NUM_THREADS=[1-9]\d*", word) for word in environment)
        assert launcher[:2] == ["--num_gpus", "2"]
        assert trainer == ["--ds_config", f"{project.root}/ds_configs/zero2.json", "--out", "x"]

    def test_threads_of_a_cpu_rank_are_at_least_one_and_the_callers_if_set(self, project):
        assert "OMP_NUM_THREADS=1" in project.launch_plan("pretrain", "--num_gpus", "999")[0]
        assert "OMP_NUM_THREADS=7" in project.launch_plan("pretrain", OMP_NUM_THREADS="7")[0]

    @pytest.mark.parametrize("gpus", [1, 3, 8])
    def test_all_gpus(self, project, gpus):
        project.put_driver("13.0", gpus)
        environment, launcher, _ = project.launch_plan("pretrain")
        assert environment == []
        assert launcher[:2] == ["--num_gpus", str(gpus)]

    @pytest.mark.parametrize("option", [("--num_gpus", "2"), ("--num_gpus=2",)])
    def test_fewer_gpus_on_request(self, project, option):
        project.put_driver("13.0", 3)
        _, launcher, trainer = project.launch_plan("pretrain", "a.b=1", *option, "--out", "x")
        assert launcher[:2] == ["--num_gpus", "2"]
        assert trainer[2:] == ["a.b=1", "--out", "x"]

    def test_more_gpus_than_there_are(self, project):
        project.put_driver("13.0", 3)
        done = project.run("pretrain", "--num_gpus", "4")
        assert done.returncode == 2
        assert "only 3" in done.stderr

    @pytest.mark.parametrize("number", ["0", "two", "-1", ""])
    def test_a_number_that_is_none(self, project, number):
        assert project.run("pretrain", "--num_gpus", number).returncode == 2

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [("2,0", "localhost:2,0"), ("GPU-1111,2", "localhost:1,2"), ("1,-1,2", "localhost:1"), ("2,7", "localhost:2")],
    )
    def test_visible_devices_are_named_one_by_one(self, project, visible, expected):
        """Beside --num_gpus the launcher would drop CUDA_VISIBLE_DEVICES and take GPUs 0, 1, ..."""
        project.put_driver("13.0", 3)
        _, launcher, _ = project.launch_plan("pretrain", CUDA_VISIBLE_DEVICES=visible)
        assert launcher[:2] == ["--include", expected]
        assert "--num_gpus" not in launcher

    def test_hidden_gpus_mean_cpu_ranks(self, project):
        project.put_driver("13.0", 3)
        environment, launcher, _ = project.launch_plan("pretrain", CUDA_VISIBLE_DEVICES="")
        assert "DS_ACCELERATOR=cpu" in environment
        assert launcher[:2] == ["--num_gpus", "2"]

    def test_a_port_of_the_caller_is_kept(self, project):
        _, launcher, _ = project.launch_plan("pretrain", "--master_port", "1234")
        assert launcher.count("--master_port") == 1
        assert launcher[launcher.index("--master_port") + 1] == "1234"

    @pytest.mark.parametrize("option", [("--ds_config", "mine.json"), ("--ds_config=mine.json",)])
    def test_a_ds_config_of_the_caller_replaces_the_default(self, project, option):
        _, _, trainer = project.launch_plan("pretrain", *option)
        assert trainer == list(option)

    def test_fine_tuning_has_a_micro_batch_of_its_own(self, project):
        _, _, trainer = project.launch_plan("finetune", "--out", "x")
        assert trainer == ["--ds_config", f"{project.root}/ds_configs/zero2_finetune.json", "--out", "x"]
        _, _, trainer = project.launch_plan("finetune", "--ds_config", "mine.json")
        assert trainer == ["--ds_config", "mine.json"]

    @pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "extract"])
    def test_help_starts_no_ranks(self, project, name):
        (command,) = project.plan(name, "--help")
        assert command[1:] == [f"{project.root}/mats_ds/{name}.py", "--help"]

    @pytest.mark.parametrize("name", ["evaluate", "extract"])
    def test_a_trained_model_runs_on_all_ranks_without_a_ds_config(self, project, name):
        project.put_driver("13.0", 3)
        environment, launcher, script = project.launch_plan(name, "--num_gpus", "2", "--model", "my run", "--manifest", "a.csv")
        assert environment == [] and launcher[:2] == ["--num_gpus", "2"]
        assert script == ["--model", "my run", "--manifest", "a.csv"]

    @pytest.mark.parametrize("option", [["--video", "a b.mp4"], ["--video=a b.mp4"]])
    def test_one_video_needs_one_process(self, project, option):
        (command,) = project.plan("evaluate", "--model", "m", *option)
        assert command[1:] == [f"{project.root}/mats_ds/evaluate.py", "--model", "m", *option]


class TestSeveralMachines:
    """With stand-ins for the programs that reach other machines; tests/faults/hosts.py has real ones."""

    @pytest.fixture
    def hosts(self, tmp_path):
        project = Project(tmp_path, root="project", caller="caller")  # pdsh's shells would split "a project"
        project.put_driver("13.0", 3)
        for tool in ("pdsh", "ompi_info", "sinfo"):
            write_script(project.tools / tool, "exit 0")
        self.write(project, "my hosts", "alpha slots=2", "# spare", "", "beta\tslots=4  # the large one", "gamma slots=2")
        return project

    def write(self, project, name: str, *lines: str) -> None:
        (project.caller / name).write_text("\n".join(lines))

    def test_a_hostfile_goes_to_the_launcher_and_adds_no_number(self, hosts):
        _, launcher, trainer = hosts.launch_plan("pretrain", "--hostfile", "my hosts", "--out", "x")
        assert launcher == ["--hostfile", "my hosts"]
        assert trainer[2:] == ["--out", "x"]
        _, launcher, _ = hosts.launch_plan("pretrain", "--num_gpus", "2", "--hostfile=my hosts", "--num_nodes=2")
        assert launcher == ["--hostfile", "my hosts", "--num_nodes", "2", "--num_gpus", "2"]

    @pytest.mark.parametrize("name", ["finetune", "evaluate", "extract"])
    def test_other_scripts_on_all_ranks_take_one_too(self, hosts, name):
        _, launcher, script = hosts.launch_plan(name, "--hostfile", "my hosts", "--ssh_port", "2222", "--model", "m")
        assert launcher == ["--hostfile", "my hosts", "--ssh_port", "2222"]
        assert script[-2:] == ["--model", "m"]

    def test_ranks_of_mpirun_are_told_where_to_meet(self, hosts):
        arguments = ["--hostfile", "my hosts", "--launcher", "openmpi"]
        _, launcher, _ = hosts.launch_plan("pretrain", *arguments)
        assert launcher[4:] == ["--launcher_args", "-x MASTER_ADDR=alpha -x MASTER_PORT=29500", "--master_addr", "alpha"]
        own = ["--master_addr", "10.0.0.1", "--master_port", "1234", "--launcher_args", "-x A=1"]
        _, launcher, _ = hosts.launch_plan("pretrain", *arguments, *own)
        assert "-x MASTER_ADDR=10.0.0.1 -x MASTER_PORT=1234 -x A=1" in launcher
        assert launcher.count("--launcher_args") == launcher.count("--master_addr") == 1

    def test_ranks_of_srun_know_from_srun_where_to_meet_unless_told(self, hosts):
        arguments = ["--hostfile", "my hosts", "--launcher", "slurm"]
        environment, launcher, _ = hosts.launch_plan("pretrain", *arguments)
        assert environment == [] and "--no_ssh_check" in launcher
        environment, _, _ = hosts.launch_plan("pretrain", *arguments, "--master_addr", "10.0.0.1", "--master_port", "1234")
        assert environment == ["MASTER_ADDR=10.0.0.1", "MASTER_PORT=1234"]

    def test_one_machine_can_start_its_own_ranks(self, hosts):
        hosts.environment["PATH"] = f"{hosts.tools}:/bin"
        (hosts.tools / "pdsh").unlink()
        arguments = ["--hostfile", "my hosts", "--no_ssh", "--node_rank", "2", "--master_addr", "10.0.0.1"]
        _, launcher, _ = hosts.launch_plan("pretrain", *arguments)
        assert launcher == arguments

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--hostfile", "nowhere"], "there is no hostfile nowhere"),
            (["--hostfile", "my hosts", "--launcher", "lsf"], "--launcher takes pdsh, openmpi or slurm, got 'lsf'"),
            (["--hostfile", "my hosts", "--num_nodes", "4"], "the hostfile names only 3"),
            (["--hostfile", "my hosts", "--num_nodes", "all"], "--num_nodes takes a number from 1 on, got 'all'"),
            (["--hostfile", "my hosts", "--include", "delta:0@alpha"], "delta is not in the hostfile"),
            (["--hostfile", "my hosts", "--exclude", "alpha@beta@gamma"], "leave no machine"),
            (["--hostfile", "my hosts", "--launcher", "openmpi", "--num_nodes", "2"], "openmpi takes the whole hostfile"),
            (["--hostfile", "my hosts", "--no_ssh", "--master_addr", "a"], "--no_ssh needs --node_rank"),
            (["--hostfile", "my hosts", "--no_ssh", "--node_rank", "1"], "--no_ssh needs --master_addr"),
            (
                ["--hostfile", "my hosts", "--no_ssh", "--node_rank", "2", "--master_addr", "a", "--num_nodes", "2"],
                "--node_rank 2: there are 2 machines, counted from 0",
            ),
            (["--launcher", "openmpi"], "name them with --hostfile"),
            (["--num_nodes", "2"], "name them with --hostfile"),
            (["--force_multi"], "name them with --hostfile"),
            (["--hostfile"], "--hostfile needs a value"),
        ],
    )
    def test_a_mistake_is_one_error(self, hosts, arguments, words):
        done = hosts.run("pretrain", *arguments)
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""

    def test_all_mistakes_of_a_hostfile_are_told_with_their_lines(self, hosts):
        self.write(hosts, "bad", "alpha slot=2", "beta slots=0", "gamma slots=1", "gamma slots=3")
        done = hosts.run("pretrain", "--hostfile", "bad")
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "launch.sh: bad: line 1: expected NAME slots=GPUS, got 'alpha slot=2'",
            "  line 2: expected NAME slots=GPUS, got 'beta slots=0'",
            "  line 4: gamma is there twice",
        ]
        self.write(hosts, "empty", "# nobody")
        assert "names no machine" in hosts.run("pretrain", "--hostfile", "empty").stderr

    @pytest.mark.parametrize(
        ("method", "tool", "package"), [("pdsh", "pdsh", "install pdsh"), ("openmpi", "ompi_info", "install openmpi-bin")]
    )
    def test_a_launcher_that_is_not_here_names_its_package(self, hosts, method, tool, package):
        """On a PATH with nothing but what launch.sh itself calls."""
        for name in ("bash", "dirname", "readlink", "timeout", "nproc", "cat", "sed", "env"):
            (hosts.tools / name).symlink_to(shutil.which(name))
        hosts.environment["PATH"] = str(hosts.tools)
        (hosts.tools / tool).unlink()
        done = hosts.run("pretrain", "--hostfile", "my hosts", "--launcher", method)
        assert done.returncode == 1 and package in done.stderr

    def test_machines_that_do_not_answer_are_named(self, hosts):
        answers = 'echo "alpha: answered"; echo "gamma: ssh: no route" >&2; echo "beta: Permission denied" >&2; exit 255'
        write_script(hosts.tools / "pdsh", answers)
        done = hosts.run("pretrain", "--hostfile", "my hosts", MATS_DRY_RUN="")
        assert done.returncode == 1 and "cannot start anything on beta gamma: ssh without a password" in done.stderr
        assert "beta: Permission denied" in done.stderr and "alpha: answered" not in done.stderr

    def test_machines_without_this_project_are_named_before_anything_starts(self, hosts):
        """The stand-in answers for alpha and gamma as they are, and for beta from an empty disk."""
        question = (
            'for host in alpha gamma; do eval "$4" | sed "s/^/$host: /"; done; echo "beta: lacks /a b"; echo "beta: answered"'
        )
        write_script(hosts.tools / "pdsh", f'[ "$2" = alpha,beta,gamma ] || exit 9\nset -- "$1" "$2" "" "$3"\n{question}')
        (hosts.root / "mats_ds" / "pretrain.py").write_text("")
        done = hosts.run("pretrain", "--hostfile", "my hosts", MATS_DRY_RUN="")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "  beta: lacks /a b" and "must be at the same path on all machines" in done.stderr
        (hosts.root / "mats_ds" / "pretrain.py").unlink()
        done = hosts.run("pretrain", "--hostfile", "my hosts", MATS_DRY_RUN="")
        assert f"  alpha: lacks {hosts.root}/mats_ds/pretrain.py" in done.stderr.splitlines()


class TestReportAndTests:
    def test_a_run_folder_is_the_callers(self, project):
        (command,) = project.plan("report", "my run", "--x")
        assert command[1:] == [f"{project.root}/profiling/report.py", "my run", "--x"]

    def test_preparing_data_stays_in_the_callers_folder(self, project):
        (command,) = project.plan("prepare", "check", "my videos", "--out", "m.csv")
        assert command[1:] == [f"{project.root}/mats_ds/prepare.py", "check", "my videos", "--out", "m.csv"]
        (command,) = project.plan("convert", "runs/my run", "w.safetensors")
        assert command[1:] == [f"{project.root}/mats_ds/convert.py", "runs/my run", "w.safetensors"]

    @pytest.mark.parametrize("name", ["probe", "visualize"])
    def test_looking_at_a_model_stays_in_the_callers_folder(self, project, name):
        (command,) = project.plan(name, "a b.mp4", "--weights", "runs/my run")
        assert command[1:] == [f"{project.root}/mats_ds/{name}.py", "a b.mp4", "--weights", "runs/my run"]

    def test_the_default_leaves_out_what_is_slow_or_needs_a_gpu(self, project):
        assert project.plan("test")[0][1:] == ["-m", "pytest", "-m", "not slow and not gpu"]
        project.put_driver("13.0", 1)
        assert project.plan("test")[0][1:] == ["-m", "pytest", "-m", "not slow"]

    def test_arguments_replace_the_default(self, project):
        assert project.plan("test", "-k", "a or b")[0][1:] == ["-m", "pytest", "-k", "a or b"]


class TestInstalling:
    def installed_extras(self, project, **environment) -> str:
        plan = project.plan("setup", MATS_PYTHON="", **environment)
        (target,) = [words[-1] for words in plan if "--editable" in words]
        return target

    @pytest.mark.parametrize(
        ("cuda", "extra"), [(None, "cuda13"), ("12.2", "cuda12"), ("12.9", "cuda12"), ("13.0", "cuda13"), ("14.1", "cuda13")]
    )
    def test_the_driver_chooses_the_builds(self, project, cuda, extra):
        project.put_driver(cuda, 1)
        assert self.installed_extras(project) == f".[{extra},test]"

    @pytest.mark.parametrize(
        ("header", "extra"),
        [("KMD Version: 595.1  CUDA UMD Version: 13.2", "cuda13"), ("Driver Version: 570.86", "cuda12")],
    )
    def test_other_headers_of_nvidia_smi(self, project, header, extra):
        write_script(project.tools / "nvidia-smi", f'echo "| {header} |"')
        assert self.installed_extras(project) == f".[{extra},test]"

    def test_a_driver_that_is_too_old_is_an_error(self, project):
        project.put_driver("11.4", 1)
        done = project.run("setup", MATS_PYTHON="")
        assert done.returncode == 1
        assert "CUDA 11.4" in done.stderr

    @pytest.mark.parametrize(("cuda", "lock"), [("12.2", "requirements-cuda12.lock"), ("13.0", "requirements.lock")])
    def test_locked_takes_the_versions_of_the_lock_file_and_nothing_else(self, project, cuda, lock):
        project.put_driver(cuda, 1)
        *_, versions, package = [words for words in project.plan("setup", "--locked", MATS_PYTHON="") if "install" in words]
        assert versions[-3:] == ["--require-hashes", "-r", lock]
        assert package[-4:] == ["--no-deps", "--no-build-isolation", "--editable", "."]
        done = project.run("setup", "--loked", MATS_PYTHON="")
        assert done.returncode == 2 and "setup takes --locked" in done.stderr

    @pytest.mark.parametrize(("backend", "extra"), [("cpu", "cuda13"), ("cu128", "cuda12"), ("cu130", "cuda13")])
    def test_a_torch_backend_of_the_caller_wins_over_the_driver(self, project, backend, extra):
        project.put_driver("12.2" if extra == "cuda13" else "13.0", 1)
        assert self.installed_extras(project, UV_TORCH_BACKEND=backend) == f".[{extra},test]"

    def test_uv_is_fetched_where_there_is_none(self, project):
        project.environment["PATH"] = f"{project.tools}:/usr/bin:/bin"
        write_script(project.tools / "uv", "exit 1")  # a shim of a version manager that leads nowhere
        plan = project.plan("setup", MATS_PYTHON="")
        assert plan[0][1:] == ["-m", "venv", f"{project.root}/.venv"]
        assert plan[1][1:] == ["-m", "pip", "install", "uv"]

    def test_a_python_that_does_not_exist(self, project):
        done = project.run("setup", MATS_PYTHON="/no/python")
        assert done.returncode == 2
        assert "MATS_PYTHON" in done.stderr

    def test_an_active_environment_that_holds_the_packages_is_used(self, project):
        environment = project.tools / "active"
        python = write_script(environment / "bin" / "python", f'exec "{sys.executable}" "$@"')
        for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            (command,) = project.plan("test", MATS_PYTHON="", **{variable: str(environment)})
            assert command[0] == str(python)

    def test_an_active_environment_that_lacks_some_is_left_alone(self, project):
        python = project.python_without_packages()
        done = project.run("setup", MATS_PYTHON="", VIRTUAL_ENV=str(Path(python).parents[1]))
        assert done.returncode == 0
        assert "lacks torch, torchvision, deepspeed, timm, ...: making .venv instead" in done.stderr
        assert f"--python {shlex.quote(f'{project.root}/.venv/bin/python')}".replace("'", "") in done.stdout.replace("\\", "")

    def test_a_version_that_is_too_old_counts_as_lacking(self, project):
        text = (project.root / "pyproject.toml").read_text()
        (project.root / "pyproject.toml").write_text(text.replace('"einops>=0.8"', '"einops>=99.1"'))
        done = project.run("setup", MATS_PYTHON="", VIRTUAL_ENV=sys.prefix)
        assert "lacks einops>=99.1" in done.stderr


class TestSecondRun:
    """With a stand-in for uv that makes an environment out of this Python and notes each call."""

    @pytest.fixture
    def installing(self, project):
        calls = project.tools / "calls"
        python = f'#!/bin/sh\\nexec "{sys.executable}" "$@"\\n'
        make = f'mkdir -p "$5/bin"; printf \'{python}\' > "$5/bin/python"; chmod +x "$5/bin/python"'
        write_script(project.tools / "uv", f'echo "$@" >> "{calls}"\nif [ "$1" = venv ]; then {make}; fi')
        project.environment |= {"MATS_DRY_RUN": "", "MATS_PYTHON": ""}

        def setup(**environment) -> int:
            calls.write_text("")
            done = project.run("setup", **environment)
            assert done.returncode == 0, done.stderr
            return calls.read_text().count("pip install")

        project.setup = setup
        return project

    def test_installs_nothing(self, installing):
        assert installing.setup() == 1
        assert installing.setup() == 0

    def test_takes_under_a_second(self, installing):
        installing.setup()
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            installing.setup()
            seconds.append(time.monotonic() - start)
        assert min(seconds) < 1

    def test_installs_again_after_the_requirements_changed(self, installing):
        installing.setup()
        with (installing.root / "setup.py").open("a") as file:
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
        assert done.returncode == 2 and "thesis.tex" in done.stderr and "give that folder another name" in done.stderr
        assert (folder / "thesis.tex").read_text() == "mine"

    def test_a_half_made_environment_is_made_anew(self, installing):
        (installing.root / ".venv" / "bin").mkdir(parents=True)
        (installing.root / ".venv" / "bin" / "python").write_text("torn")
        assert installing.setup() == 1

    def test_uv_reads_no_settings_of_the_callers_folder(self, installing):
        """A uv.toml there could name another package index."""
        calls = installing.tools / "calls"
        installing.setup()
        lines = [line for line in calls.read_text().splitlines() if line.startswith(("venv", "pip install"))]
        assert len(lines) == 2 and all(f"--directory {installing.root}" in line for line in lines)

    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
    def test_a_killed_launch_sh_leaves_no_installation_running(self, installing):
        pid_file = installing.tools / "pid"
        write_script(
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
        good = (installing.tools / "uv").read_text()
        write_script(installing.tools / "uv", 'if [ "$1" = pip ]; then exit 1; fi\n' + good.partition("\n")[2])
        done = installing.run("setup")
        assert done.returncode == 1
        assert "the installation failed" in done.stderr
        write_script(installing.tools / "uv", good.partition("\n")[2])
        assert installing.setup() == 1


@pytest.mark.slow
class TestRealLauncher:
    """The DeepSpeed launcher itself on a stand-in for the trainer."""

    @pytest.fixture
    def running(self, project):
        project.environment |= {"MATS_DRY_RUN": "", "CUDA_VISIBLE_DEVICES": ""}
        trainer = project.root / "mats_ds" / "pretrain.py"
        trainer.write_text(
            "import os, subprocess, sys, time\n"
            "rank = os.environ['RANK']\n"
            "if 'sleep' in sys.argv:\n"
            "    child = subprocess.Popen(['sleep', '600'])\n"
            "    open(f'pids-{rank}', 'w').write(f'{os.getpid()} {child.pid}')\n"
            "    time.sleep(600)\n"
            "open(f'arguments-{rank}', 'w').write(repr(sys.argv[1:]))\n"
            "sys.exit(3 if f'fail-{rank}' in sys.argv else 0)\n"
        )
        tools = project.root / "profiling"
        tools.mkdir()
        (tools / "report.py").write_text("import sys; print('report of', sys.argv[1]); sys.exit(4)\n")
        return project

    def test_starts_both_ranks_with_the_arguments_as_they_are(self, running):
        done = running.run("pretrain", "--out", "a b", "x.y='c: d'")
        assert done.returncode == 0, done.stderr
        for rank in "01":
            arguments = (running.caller / f"arguments-{rank}").read_text()
            assert arguments == repr(
                [f"--local_rank={rank}", "--ds_config", f"{running.root}/ds_configs/zero2.json", "--out", "a b", "x.y='c: d'"]
            )

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
    def test_no_module_of_the_callers_folder_is_taken(self, running):
        for name in ("socket", "json", "argparse", "psutil", "deepspeed"):
            (running.caller / f"{name}.py").write_text("open('taken', 'w').close()\nraise SystemExit(9)\n")
        done = running.run("pretrain")
        assert done.returncode == 0 and not (running.caller / "taken").exists(), done.stderr

    def test_the_status_of_a_failed_rank_comes_back(self, running):
        assert running.run("pretrain", "fail-1").returncode == 3

    def test_the_demo_ends_with_the_status_of_the_report(self, running):
        done = running.run("demo")
        assert done.returncode == 4
        assert "report of runs/demo-" in done.stdout

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_leaves_no_rank_behind(self, running, number, status):
        launch = subprocess.Popen(
            ["bash", str(running.root / "launch.sh"), "pretrain", "sleep"],
            cwd=running.caller,
            env=running.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        files = [running.caller / f"pids-{rank}" for rank in "01"]
        deadline = time.monotonic() + 240
        while not all(file.exists() and len(file.read_text().split()) == 2 for file in files):
            assert launch.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        launch.send_signal(number)
        assert launch.wait(timeout=60) == status
        assert not [pid for pid in pids if is_running(pid)]


def wait_for(is_so, process: subprocess.Popen | None = None, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
