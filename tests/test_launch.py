"""Ranks: the command that starts them on this machine or on hosts, and DeepSpeed's launcher itself
on a stand-in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import pytest

from mats_ds import demo, launch
from mats_ds.distributed.visible_gpus import Gpu
from mats_ds.launch import make_command, split_arguments
from tests.distributed.test_remote import ARGUMENTS, PDSH
from tests.project_copy import Project, is_running, wait_for, write_program

PACKAGE = Path(launch.__file__).parent
CONFIGS = PACKAGE.parent / "ds_configs"
MIG = "MIG-c6d4f1ef"


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets how many GPUs this machine has; without a call, none."""

    def put(number: int) -> None:
        there = [Gpu(index, f"GPU-{index}{index}{index}{index}-aa") for index in range(number)]
        monkeypatch.setattr(launch, "list_gpus", lambda: [*there, Gpu(0, MIG), Gpu(0, "MIG-second")] if there else [])

    put(0)
    return put


def read_command(name: str, *arguments: str, **environment: str) -> tuple[launch.Command, list[str], list[str]]:
    """The command, its options of the launcher, and the program's arguments."""
    command = make_command(name, arguments, environment, is_dry=True)
    assert command.words[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    program = command.words.index(str(PACKAGE / f"{name}.py"))
    return command, command.words[3:program], command.words[program + 1 :]


class TestThisMachine:
    def test_two_cpu_ranks_without_a_gpu(self, gpus):
        command, launcher, script = read_command("pretrain", "--out", "x")
        assert command.variables["DS_ACCELERATOR"] == "cpu" and int(command.variables["OMP_NUM_THREADS"]) >= 1
        assert launcher[:2] == ["--num_gpus", "2"]
        assert script == ["--ds_config", str(CONFIGS / "zero2.json"), "--out", "x"]

    def test_threads_of_a_cpu_rank_are_at_least_one_and_the_callers_if_set(self, gpus):
        assert read_command("pretrain", "--num_gpus", "999")[0].variables["OMP_NUM_THREADS"] == "1"
        assert read_command("pretrain", OMP_NUM_THREADS="7")[0].variables["OMP_NUM_THREADS"] == "7"

    @pytest.mark.parametrize("number", [1, 3, 8])
    def test_all_gpus(self, gpus, number):
        gpus(number)
        command, launcher, _ = read_command("pretrain")
        assert (command.variables, command.without) == ({}, ()) and launcher[:2] == ["--num_gpus", str(number)]
        command, launcher, _ = read_command("pretrain", CUDA_VISIBLE_DEVICES="all")
        assert command.without == ("CUDA_VISIBLE_DEVICES",) and launcher[:2] == ["--num_gpus", str(number)]

    @pytest.mark.parametrize("option", [("--num_gpus", "2"), ("--num_gpus=2",)])
    def test_fewer_gpus_on_request(self, gpus, option):
        gpus(3)
        _, launcher, script = read_command("pretrain", "a.b=1", *option, "--out", "x")
        assert launcher[:2] == ["--num_gpus", "2"] and script[2:] == ["a.b=1", "--out", "x"]

    def test_more_gpus_than_there_are(self, gpus):
        gpus(3)
        with pytest.raises(ValueError, match="--num_gpus 4: only 3"):
            read_command("pretrain", "--num_gpus", "4")

    @pytest.mark.parametrize("number", ["0", "two", "-1", ""])
    def test_a_number_that_is_none(self, gpus, number):
        with pytest.raises(ValueError, match=f"--num_gpus takes a number from 1 on, got '{number}'"):
            read_command("pretrain", "--num_gpus", number)

    @pytest.mark.parametrize(("visible", "slots"), [("2,0", "2,0"), ("GPU-1111,2", "1,2"), ("1,-1,2", "1"), ("2,7", "2")])
    def test_visible_devices_are_named_one_by_one(self, gpus, visible, slots):
        """Beside --num_gpus the launcher would drop CUDA_VISIBLE_DEVICES and take GPUs 0, 1, ..."""
        gpus(3)
        command, launcher, _ = read_command("pretrain", CUDA_VISIBLE_DEVICES=visible)
        assert launcher[:2] == ["--include", f"localhost:{slots}"] and "--num_gpus" not in launcher
        assert command.without == ("CUDA_VISIBLE_DEVICES",)
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if "GPU" in visible else {}
        assert command.variables == order, "a UUID becomes nvidia-smi's index, which is that of the bus"

    def test_hidden_gpus_mean_cpu_ranks(self, gpus):
        gpus(3)
        command, launcher, _ = read_command("pretrain", CUDA_VISIBLE_DEVICES="")
        assert command.variables["DS_ACCELERATOR"] == "cpu" and launcher[:2] == ["--num_gpus", "2"]

    @pytest.mark.parametrize("number", [0, 3])
    def test_a_value_that_fits_no_gpu_never_runs_on_the_cpu(self, gpus, number):
        gpus(number)
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=7 fits no GPU"):
            read_command("pretrain", CUDA_VISIBLE_DEVICES="7")

    def test_one_mig_part_is_one_rank_that_sees_it_alone(self, gpus):
        gpus(1)
        command = make_command("pretrain", ["--out", "x"], {"CUDA_VISIBLE_DEVICES": MIG})
        assert command.words[:3] == [sys.executable, "-u", str(PACKAGE / "pretrain.py")] and command.words[-2:] == ["--out", "x"]
        assert command.variables == {"CUDA_VISIBLE_DEVICES": MIG} and command.without == ()
        both = {"CUDA_VISIBLE_DEVICES": f"{MIG},MIG-second"}
        assert make_command("pretrain", ["--num_gpus", "1"], both).variables["CUDA_VISIBLE_DEVICES"] == MIG
        with pytest.raises(ValueError, match="MIG-second.*NCCL"):
            make_command("pretrain", [], both)

    def test_a_port_of_the_caller_is_kept_and_otherwise_free(self, gpus):
        _, launcher, _ = read_command("pretrain", "--master_port", "1234")
        assert launcher.count("--master_port") == 1 and launcher[launcher.index("--master_port") + 1] == "1234"
        words = make_command("pretrain", [], {}).words
        assert int(words[words.index("--master_port") + 1]) > 1023
        with pytest.raises(ValueError, match="from 1 to 65535, got '70000'"):
            read_command("pretrain", "--master_port", "70000")

    @pytest.mark.parametrize("arguments", [[], ["--include", "localhost:0"]])
    def test_no_other_hostfile_is_taken_without_being_named(self, gpus, arguments):
        """DeepSpeed's own default is /job/hostfile."""
        _, launcher, _ = read_command("pretrain", *arguments)
        assert launcher[launcher.index("--hostfile") + 1] == os.devnull

    @pytest.mark.parametrize("arguments", [[], ["--include", "localhost:0"], ["--num_gpus", "1"]])
    def test_the_launcher_of_this_machine_adds_no_line_to_an_end_that_a_rank_has_explained(self, gpus, arguments):
        _, launcher, _ = read_command("pretrain", *arguments)
        assert launcher[launcher.index("--log_level") + 1] == "critical"

    @pytest.mark.parametrize("option", [("--ds_config", "mine.json"), ("--ds_config=mine.json",)])
    def test_a_ds_config_of_the_caller_replaces_the_default(self, gpus, option):
        assert read_command("pretrain", *option)[2] == list(option)
        assert read_command("finetune", *option)[2] == list(option)

    def test_each_program_has_its_own_default(self, gpus):
        assert read_command("finetune", "--out", "x")[2] == ["--ds_config", str(CONFIGS / "zero2_finetune.json"), "--out", "x"]
        for name in ("evaluate", "extract"):
            assert read_command(name, "--model", "my run")[2] == ["--model", "my run"]

    def test_options_are_split_from_the_programs_arguments(self):
        words = [
            "a=1",
            "--launcher=PDSH",
            "--launcher_args",
            "-x A=1",
            "--no_ssh",
            "--",
            "--out",
            "--x=--include",
            "--include",
            "-a",
        ]
        options, script = split_arguments(words)
        assert options == {"--launcher": "pdsh", "--launcher_args": "-x A=1", "--no_ssh": "", "--include": "-a"}
        assert script == ["a=1", "--", "--out", "--x=--include"]
        with pytest.raises(ValueError, match="--hostfile needs a value"):
            split_arguments(["--hostfile"])

    def test_a_dry_run_prints_the_command_and_a_mistake_is_the_status(self, gpus, monkeypatch, capsys):
        monkeypatch.setenv("MATS_DRY_RUN", "1")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert launch.main(["evaluate", "--model", "a b"]) == 0
        assert re.match(r"\+ env DS_ACCELERATOR=\S+ .* --master_port PORT .*evaluate.py --model 'a b'\n", capsys.readouterr().out)
        assert launch.main(["evaluate", "--num_gpus", "x"]) == launch.main(["plan"]) == launch.main([]) == 2
        assert launch.main(["--help"]) == 0


class TestHosts:
    @pytest.fixture(autouse=True)
    def hosts(self, tmp_path, monkeypatch):
        """Three hosts, the programs that reach them, and the caller's folder with the hostfile."""
        folder, tools = tmp_path / "caller", tmp_path / "tools"
        folder.mkdir()
        for tool in ("pdsh", "ompi_info", "sinfo"):
            write_program(tools / tool, "exit 0")
        monkeypatch.setenv("PATH", f"{tools}:/bin")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(folder)
        (folder / "my hosts").write_text("alpha slots=2\nbeta slots=4\ngamma slots=2\n")
        return tools

    def test_a_hostfile_goes_to_the_launcher_and_adds_no_number(self):
        command, launcher, script = read_command("pretrain", "--hostfile", "my hosts", "--out", "x")
        assert launcher == ["--hostfile", "my hosts"] and script[2:] == ["--out", "x"] and command.variables == {}
        _, launcher, _ = read_command("pretrain", "--num_gpus", "2", "--hostfile=my hosts", "--num_nodes=2")
        assert launcher == ["--num_gpus", "2", "--hostfile", "my hosts", "--num_nodes", "2"]
        _, launcher, _ = read_command("extract", "--hostfile", "my hosts", "--ssh_port", "2222", "--model", "m")
        assert launcher == ["--hostfile", "my hosts", "--ssh_port", "2222"]

    def test_ranks_of_mpirun_get_the_address_where_they_meet(self):
        arguments = ["--hostfile", "my hosts", "--launcher", "openmpi"]
        _, launcher, _ = read_command("pretrain", *arguments)
        assert launcher[4:6] == ["--launcher_args=-x MASTER_ADDR=alpha -x MASTER_PORT=29500", "--master_addr"]
        assert launcher[6] == "alpha"
        own = ["--master_addr", "10.0.0.1", "--master_port", "1234", "--launcher_args", "-x A=1"]
        _, launcher, _ = read_command("pretrain", *arguments, *own)
        assert "--launcher_args=-x MASTER_ADDR=10.0.0.1 -x MASTER_PORT=1234 -x A=1" in launcher
        assert launcher.count("--master_addr") == 1

    def test_ranks_of_srun_know_from_srun_where_to_meet_unless_it_is_given(self):
        arguments = ["--hostfile", "my hosts", "--launcher", "slurm"]
        command, launcher, _ = read_command("pretrain", *arguments)
        assert command.variables == {} and "--no_ssh_check" in launcher
        command, _, _ = read_command("pretrain", *arguments, "--master_addr", "10.0.0.1", "--master_port", "1234")
        assert command.variables == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}

    def test_one_machine_can_start_its_own_ranks_without_pdsh_and_without_encoding(self, hosts):
        (hosts / "pdsh").unlink()
        arguments = ["--hostfile", "my hosts", "--no_ssh", "--node_rank", "2", "--master_addr", "10.0.0.1"]
        _, launcher, script = read_command("pretrain", *arguments, "$(touch pwned)", "a b")
        assert launcher == [*arguments, *launch.SILENT] and script[-2:] == ["$(touch pwned)", "a b"]

    def test_odd_arguments_travel_as_one_word(self):
        command = make_command("pretrain", ["--hostfile", "my hosts", "a b"], {}, is_dry=True)
        assert command.words[-3] == str(PACKAGE / "distributed" / "run_encoded.py") and command.words[-2] == "pretrain"

    def test_a_folder_that_a_shell_would_read_another_way_is_refused_for_pdsh_alone(self, tmp_path, monkeypatch):
        (tmp_path / "caller" / "a b").mkdir()
        monkeypatch.chdir(tmp_path / "caller" / "a b")
        with pytest.raises(ValueError, match="a b' holds the character ' '"):
            read_command("pretrain", "--hostfile", "../my hosts")
        read_command("pretrain", "--hostfile", "../my hosts", "--launcher", "openmpi")
        # one host alone needs no shell
        read_command("pretrain", "--hostfile", "../my hosts", "--include", "alpha")
        with pytest.raises(ValueError, match="a b' holds the character"):
            read_command("pretrain", "--hostfile", "../my hosts", "--include", "alpha", "--force_multi")

    def test_variables_and_hosts_are_checked(self, hosts):
        with pytest.raises(ValueError, match="NCCL_X"):
            read_command("pretrain", "--hostfile", "my hosts", NCCL_X="$(x)")
        write_program(hosts / "pdsh", "echo 'alpha: answered'")
        with pytest.raises(OSError, match="on beta gamma"):
            make_command("pretrain", ["--hostfile", "my hosts"], {})

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--hostfile", "nowhere"], "there is no hostfile nowhere"),
            (["--hostfile", "my hosts", "--launcher", "lsf"], "got 'lsf'"),
            (["--hostfile", "my hosts", "--num_nodes", "4"], "names only 3"),
            (["--hostfile", "my hosts", "--launcher", "openmpi", "--num_nodes", "2"], "openmpi takes all of the hostfile"),
            (["--hostfile", "my hosts", "--no_ssh", "--master_addr", "a"], "--no_ssh needs --node_rank"),
            (["--hostfile", "my hosts", "--no_ssh", "--node_rank", "1"], "--no_ssh needs --master_addr"),
            (
                ["--hostfile", "my hosts", "--no_ssh", "--node_rank", "2", "--master_addr", "a", "--num_nodes", "2"],
                "--node_rank 2: the hostfile has 2 machines",
            ),
            (["--hostfile", "my hosts", "--master_addr", "-oProxyCommand=x"], "--master_addr takes a host name or an address"),
            (["--hostfile", "my hosts", "--master_addr=a b"], "got 'a b'"),
            (["--hostfile", "my hosts", "--master_port", "1;touch"], "--master_port takes a number from 1 to 65535"),
            (["--hostfile", "my hosts", "--ssh_port", "22 -oProxyCommand=x"], "--ssh_port takes a number from 1 to 65535"),
            (["--launcher", "openmpi"], "--hostfile"),
            (["--num_nodes", "2"], "--hostfile"),
            (["--force_multi"], "--hostfile"),
        ],
    )
    def test_a_mistake_is_one_error(self, gpus, arguments, words):
        with pytest.raises(ValueError, match=words):
            read_command("pretrain", *arguments)


class TestDemo:
    @pytest.mark.parametrize("name", ["my videos", "a: b", "it's # one", "[x]", "a ", "two\nlines"])
    def test_a_folder_of_any_name_arrives(self, monkeypatch, tmp_path, name):
        from mats_ds.config.load import load_recipe

        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        given = []
        monkeypatch.setattr(demo, "launch", lambda program, arguments: given.extend(arguments) or 3)
        assert demo.main([name]) == 3, "the status of the training"
        assert given[:2] == ["--recipe", "tiny"] and given[2:5:2] == ["--ds_config", "--out"]
        recipe = load_recipe("tiny", given[6:])
        assert recipe.data.manifest == f"{tmp_path}/{name}" and recipe.optim.steps == 80

    def test_the_synthetic_set_is_the_default_and_the_report_comes_last(self, monkeypatch, capsys, gpus):
        monkeypatch.setenv("MATS_DRY_RUN", "1")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert demo.main([]) == 0
        training, report = capsys.readouterr().out.splitlines()
        out = re.search(r"--out (runs/demo-\d{8}-\d{6})$", training)[1]
        assert report.endswith(f"mats_ds/report.py {out}")

    def test_a_missing_folder_is_an_error(self, capsys):
        assert demo.main(["no such folder"]) == 2
        assert "there is no folder no such folder" in capsys.readouterr().err


@pytest.mark.slow
class TestRealLauncher:
    """launch.sh and DeepSpeed's launcher on a stand-in for the trainer."""

    @pytest.fixture
    def running(self, tmp_path):
        project = Project(tmp_path)
        project.environment |= {"MATS_DRY_RUN": "", "CUDA_VISIBLE_DEVICES": ""}
        (project.root / "mats_ds" / "pretrain.py").write_text(
            "def check(arguments, *, reads_paths):\n    assert reads_paths\n"
            "if __name__ == '__main__':\n"
            + indent(
                "import os, subprocess, sys, time\n"
                "rank = os.environ['RANK']\n"
                "if 'save' in sys.argv:\n"
                "    import signal\n"
                "    stopping = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}\n"
                "    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)\n"
                "    open(f'ready-{rank}', 'w').close()\n"
                "    os.write(1, f'{signal.sigwait(stopping).name} came to rank {rank}\\n'.encode())  # in one piece\n"
                "    sys.exit(75)\n"
                "if 'sleep' in sys.argv:\n"
                "    child = subprocess.Popen(['sleep', '600'])\n"
                "    open(f'pids-{rank}', 'w').write(f'{os.getpid()} {child.pid}')\n"
                "    time.sleep(600)\n"
                "open(f'arguments-{rank}', 'w').write(repr(sys.argv[1:]))\n"
                "if f'die-{rank}' in sys.argv:\n"
                "    os.kill(os.getpid(), 9)\n"
                "statuses = [int(word[2:]) for word in sys.argv if word.startswith('s=')]\n"
                "sys.exit(statuses[0] if statuses else 3 if f'fail-{rank}' in sys.argv else 0)\n",
                "    ",
            )
        )
        (project.root / "mats_ds" / "report.py").write_text("import sys; print('report of', sys.argv[1]); sys.exit(4)\n")
        return project

    def test_starts_both_ranks_with_the_arguments_as_they_are(self, running):
        done = running.run("pretrain", "--out", "a b", "x.y='c: d'")
        assert done.returncode == 0, done.stderr
        config = f"{running.root}/ds_configs/zero2.json"
        for rank in "01":
            arguments = (running.caller / f"arguments-{rank}").read_text()
            assert arguments == repr([f"--local_rank={rank}", "--ds_config", config, "--out", "a b", "x.y='c: d'"])

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
    def test_no_module_of_the_callers_folder_is_taken(self, running):
        for name in ("socket", "json", "argparse", "psutil", "deepspeed", "mats_ds"):
            (running.caller / f"{name}.py").write_text("open('taken', 'w').close()\nraise SystemExit(9)\n")
        done = running.run("pretrain")
        assert done.returncode == 0 and not (running.caller / "taken").exists(), done.stderr

    def test_the_status_of_a_failed_rank_comes_back(self, running):
        done = running.run("pretrain", "fail-1")
        assert done.returncode == 3 and "a rank has ended and has not said why (status 3)" in done.stderr

    @pytest.mark.parametrize("status", [1, 2, 75, 130])
    def test_nothing_is_printed_below_what_the_ranks_say_themselves(self, running, status):
        done = running.run("pretrain", f"s={status}")
        assert (done.returncode, done.stderr) == (status, "")

    def test_a_rank_that_was_killed_cannot_say_so_and_mats_does(self, running):
        done = running.run("pretrain", "die-1")
        (line,) = done.stderr.splitlines()
        assert done.returncode == 247 and "a rank was killed by SIGKILL" in line and "--resume auto" in line

    def test_the_demo_ends_with_the_status_of_the_report(self, running):
        done = running.run("demo")
        assert done.returncode == 4, done.stderr
        assert "report of runs/demo-" in done.stdout

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_leaves_no_rank_behind(self, running, number, status):
        job = subprocess.Popen(
            ["bash", str(running.root / "launch.sh"), "pretrain", "sleep"],
            cwd=running.caller,
            env=running.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        files = [running.caller / f"pids-{rank}" for rank in "01"]
        wait_for(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files), job)
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        job.send_signal(number)
        assert job.wait(timeout=60) == status
        time.sleep(0.1)
        assert not [pid for pid in pids if is_running(pid)]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_ranks_that_save_get_the_same_signal_and_give_their_status(self, running, number):
        said = running.caller / "said"
        with said.open("w") as log:
            job = subprocess.Popen(
                ["bash", str(running.root / "launch.sh"), "pretrain", "save"],
                cwd=running.caller,
                env=running.environment,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: all((running.caller / f"ready-{rank}").exists() for rank in "01"), job)
        job.send_signal(number)
        assert job.wait(timeout=60) == 75
        for rank in "01":
            assert f"{number.name} came to rank {rank}" in said.read_text()
        assert "stopped by" not in said.read_text()

    @pytest.mark.parametrize(
        ("status", "words"), [(75, "interrupted"), (130, "interrupted"), (143, "interrupted"), (1, "failed")]
    )
    def test_the_demo_says_whether_its_training_failed_or_was_interrupted(self, monkeypatch, capsys, tmp_path, status, words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(demo, "launch", lambda program, arguments: status)
        assert demo.main([]) == status
        error = capsys.readouterr().err
        assert f"the training {'was ' * (status != 1)}{words} (status {status}); no folder was made" in error

    def test_arguments_reach_two_hosts_as_they_are(self, tmp_path):
        """Two hosts that are this one, behind a stand-in for pdsh that runs a shell as pdsh
        does."""
        project = Project(tmp_path, root="project", caller="caller")
        contacted = tmp_path / "contacted"
        project.environment |= {"CONTACTED": str(contacted), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        write_program(project.tools / "pdsh", "")
        (project.tools / "pdsh").write_text(f"#!{sys.executable}\n{PDSH}")
        write_program(project.tools / "ssh", 'echo "ssh $*" >> "$CONTACTED"; echo 127.0.0.1')
        (project.caller / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
        (project.root / "mats_ds" / "pretrain.py").write_text(
            "import json, os, sys\n"
            "def check(arguments, *, reads_paths):\n    assert not reads_paths\n"
            "if __name__ == '__main__':\n"
            "    open('got-' + os.environ.get('RANK', '0'), 'w').write(json.dumps(sys.argv[1:]))\n"
        )
        done = project.run("pretrain", "--hostfile", "hosts", *ARGUMENTS, MATS_DRY_RUN="")
        assert done.returncode == 0, done.stderr
        for rank in "01":
            got = json.loads((project.caller / f"got-{rank}").read_text())
            assert got[0] == "--local_rank=0" and got[3:] == ARGUMENTS
        assert not list(project.caller.glob("pwned")) and "deepspeed.launcher.launch" in contacted.read_text()
