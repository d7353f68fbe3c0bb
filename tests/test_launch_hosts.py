"""What launch.sh hands to other hosts: every argument arrives as it is, and what a shell over there would expand is refused.

Stand-ins for pdsh and ssh do what pdsh 2.34 was seen to do: %h, %u and %n of the command are replaced, what follows an empty
argument is lost, the rest is joined by spaces and run by a shell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_launch import ROOT, Project, write_script

ARGUMENTS = [
    "$(touch pwned)", "`touch pwned`", "$HOME", "${HOME}", "a b", "a  b ", "'single'", '"double"', "it's \"both\"", "back\\slash",
    "end\\", "\\", ";", "a;touch pwned", "&", "a|b", "||", ">out", "<in", "(x)", "*", "?", "[ab]*", "{a,b}", "~", "a~", "#c",
    "x #y", "!x", "^", "new\nline", "\n", "tab\tx", "", "é", "日本", "\u00a0", "-dash", "--", "%h", "%u%n", "100%", "%%h",
    "=zsh", "a=b", ":", "\x1b[31m", "data.manifest='c: d'", "x.y=[1, 2]", "$'a\\nb'", os.fsdecode(b"no utf-8 \xff"),
]  # fmt: skip
TRAINER = "import json, os, sys; open('got-' + os.environ.get('RANK', '0'), 'w').write(json.dumps(sys.argv[1:]))\n"
PDSH = r"""
import os, subprocess, sys
words = sys.argv[1:]
while words and words[0].startswith("-"):
    option = words.pop(0)
    if option == "-w":
        hosts = words.pop(0).split(",")
    elif option == "-f":
        words.pop(0)
words = words[: words.index("")] if "" in words else words
open(os.environ["CONTACTED"], "a").write(" ".join(words) + "\n")
jobs = []
for number, host in enumerate(hosts):
    line = " ".join(words)
    for mark, value in (("%h", host), ("%u", "root"), ("%n", str(number))):
        line = line.replace(mark, value)
    jobs.append((host, subprocess.Popen([os.environ.get("SHELL_THERE", "sh"), "-c", line], stdout=subprocess.PIPE, text=True)))
for host, job in jobs:
    said, _ = job.communicate()
    print("".join(f"{host}: {text}\n" for text in said.splitlines()), end="")
sys.exit(max(job.returncode for _, job in jobs))
"""


@pytest.fixture
def hosts(tmp_path):
    """Two hosts that are this one; `hosts.contacted` is there as soon as anybody has tried to reach one."""
    project = Project(tmp_path, root="project", caller="caller")
    project.contacted = tmp_path / "contacted"
    project.environment |= {"CONTACTED": str(project.contacted), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    (project.tools / "pdsh").write_text(f"#!{sys.executable}\n{PDSH}")
    (project.tools / "pdsh").chmod(0o755)
    write_script(project.tools / "ssh", 'echo "ssh $*" >> "$CONTACTED"; echo 127.0.0.1')
    for tool in ("ompi_info", "sinfo"):
        write_script(project.tools / tool, "exit 0")
    write_hosts(project, "alpha slots=1", "beta slots=1")
    package = project.root / "mats_ds"
    shutil.copy(ROOT / "mats_ds" / "run_encoded.py", package)
    (package / "pretrain.py").write_text(TRAINER)
    return project


def write_hosts(project: Project, *lines: str) -> None:
    (project.caller / "hosts").write_bytes("".join(f"{line}\n" for line in lines).encode())


def program_of(project: Project, *arguments: str) -> list[str]:
    """The words from the program on, of the one command that would run on the hosts."""
    (command,) = [words for words in project.plan("pretrain", "--hostfile", "hosts", *arguments) if "--hostfile" in words]
    return command[next(place for place, word in enumerate(command) if word.startswith(f"{project.root}/mats_ds/")) :]


def answers_of(function: str, script: str, *arguments: str) -> list[str]:
    """The lines that `script` prints, with one function of launch.sh at hand."""
    text = (ROOT / "launch.sh").read_text().partition(f"\n{function}() {{")[2].partition("\n}\n")[0]
    command = ["bash", "-euc", f"{function}() {{{text}\n}}\n{script}", "bash", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def refused(project: Project, *arguments: str, **environment: str) -> str:
    """The one line that says so, before anybody was contacted."""
    done = project.run("pretrain", "--hostfile", "hosts", *arguments, MATS_DRY_RUN="", **environment)
    assert done.returncode == 2, done.stderr
    assert not project.contacted.exists() and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_argument_survives_a_shell_on_the_way(hosts, shell):
    hosts.environment["SHELL_THERE"] = shell
    program = program_of(hosts, "--out", "x", *ARGUMENTS)
    # pdsh runs these words as DeepSpeed would let it, with what its launcher of the host adds
    line = ["pdsh", "-w", "alpha", sys.executable, program[0], "--local_rank=0", *program[1:]]
    subprocess.run(line, env=hosts.environment, cwd=hosts.caller, check=True)
    got = json.loads((hosts.caller / "got-0").read_text())
    assert got == ["--local_rank=0", "--ds_config", f"{hosts.root}/ds_configs/zero2.json", "--out", "x", *ARGUMENTS]
    assert not (hosts.caller / "pwned").exists()


def test_each_by_itself_is_seen_to_need_it():
    """No shell reads these another way, or they travel as one word."""
    script = 'for word in "$@"; do script=("$word"); encode_script; echo "${#script[@]}"; done'
    lengths = answers_of("encode_script", f"ROOT=/ name=pretrain; {script}", *ARGUMENTS, "--out", "runs/a_b-1.csv")
    plain = [word for word, length in zip([*ARGUMENTS, "--out", "runs/a_b-1.csv"], lengths, strict=True) if length == "1"]
    assert plain == ["-dash", "--", "a=b", "--out", "runs/a_b-1.csv"]


def test_plain_arguments_stay_readable(hosts):
    plain = ["--recipe", "k400", "data.manifest=/data/a-b_c.csv", "optim.base_lr=1e-4", "x.y=1,2", "a@b:c+d"]
    assert program_of(hosts, *plain)[3:] == plain


def test_on_one_machine_arguments_are_never_encoded(hosts):
    arguments = ["--no_ssh", "--node_rank", "0", "--master_addr", "alpha", "$(touch pwned)", "a b"]
    assert program_of(hosts, *arguments)[-2:] == ["$(touch pwned)", "a b"]


@pytest.mark.slow
def test_the_real_launcher_hands_them_over(hosts):
    done = hosts.run("pretrain", "--hostfile", "hosts", *ARGUMENTS, MATS_DRY_RUN="")
    assert done.returncode == 0, done.stderr
    for rank in "01":
        got = json.loads((hosts.caller / f"got-{rank}").read_text())
        assert got[0] == "--local_rank=0" and got[3:] == ARGUMENTS
    assert not list(hosts.caller.glob("pwned")) and "deepspeed.launcher.launch" in hosts.contacted.read_text()


@pytest.mark.parametrize("name", ["-oProxyCommand=touch${IFS}pwned", "user@alpha", "$(touch)"])
def test_what_is_no_host_name_is_refused_before_anybody_is_contacted(hosts, name):
    write_hosts(hosts, "alpha slots=1", f"{name} slots=1")
    line = refused(hosts)
    assert "hosts: line 2: " in line and f"'{name}' is no host name" in line and ".ssh/config" in line


def test_names_and_addresses_of_clusters_are_host_names_and_nothing_else_is():
    good = ["alpha", "node_7", "gpu-01.rack2.example.org", "10.0.0.1", "a" * 63, "_x", "7"]
    bad = [
        "-oProxyCommand=x",
        "-lroot",
        "a;touch",
        "$(touch)",
        "`x`",
        "a'b",
        'a"b',
        "a b",
        "a/b",
        "user@alpha",
        "fe80::1",
        "^file",
        "",
    ]
    bad += [
        "alpha[1-3]",
        "ssh:alpha",
        "alpha,beta",
        "alpha.",
        ".alpha",
        "al..pha",
        "alpha-",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "é",
    ]
    bad += ["alpha\n", "alpha\n-x", "%h", "*"]
    answers = answers_of("is_host", 'for word in "$@"; do is_host "$word" && echo yes || echo no; done', *good, *bad)
    assert answers == ["yes"] * len(good) + ["no"] * len(bad)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("# harmless\r-oProxyCommand=x slots=1", "line 2: a carriage return"),
        ("beta slots=1 # \x1b[2Jx", "control characters"),
        ("be\0ta slots=1", "control characters"),
        ("beta slots=99999999999999999999", "line 2: expected NAME slots=GPUS"),
        ("beta slots=1 $(x)", "line 2: expected NAME slots=GPUS"),
        ("\x1b]0;title\x07 slots", "line 2: expected NAME slots=GPUS, got '?]0;title? slots'"),
    ],
)
def test_a_hostfile_that_python_would_read_another_way_is_refused(hosts, line, words):
    write_hosts(hosts, "alpha slots=1", line)
    done = hosts.run("pretrain", "--hostfile", "hosts", MATS_DRY_RUN="")
    assert done.returncode == 2 and words in done.stderr
    assert not hosts.contacted.exists() and "\x1b" not in done.stderr and "\x07" not in done.stderr


def test_a_hostfile_of_windows_is_one(hosts):
    write_hosts(hosts, "alpha slots=1\r", "# comment\r", "beta slots=1\r")
    assert program_of(hosts)[0].endswith("pretrain.py")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--master_addr", "-oProxyCommand=x"], "--master_addr takes a host name or an address"),
        (["--master_addr", "$(touch pwned)"], "--master_addr takes a host name or an address"),
        (["--master_addr=a b"], "got 'a b'"),
        (["--master_port", "1;touch"], "--master_port takes a number from 1 to 65535"),
        (["--master_port", "70000"], "got '70000'"),
        (["--ssh_port", "22 -oProxyCommand=x"], "--ssh_port takes a number from 1 to 65535"),
        (["--include", "alpha:$(x)"], "--include and --exclude take HOST[:SLOT,...]"),
        (["--include", "alpha:zero"], "'alpha:zero': expected HOST or HOST:SLOT,SLOT"),
        (["--exclude", "alpha:"], "'alpha:': expected HOST or HOST:SLOT,SLOT"),
        (["--include", "*"], "got '*'"),
    ],
)
def test_options_that_reach_a_shell_hold_what_they_say(hosts, arguments, words):
    assert words in refused(hosts, *arguments)


@pytest.mark.parametrize("address", ["10.0.0.1", "fe80::1", "node_7"])
def test_addresses_of_both_kinds_are_taken(hosts, address):
    assert program_of(hosts, "--master_addr", address)[0].endswith("pretrain.py")


@pytest.mark.parametrize(
    ("name", "character"), [("a b", "\\ "), ("$(touch pwned)", "\\$"), ("per%hcent", "%"), ("new\nline", "$'\\n'")]
)
def test_a_folder_that_a_shell_would_read_another_way_is_refused_for_pdsh_alone(hosts, name, character):
    folder = hosts.caller / name
    folder.mkdir()
    shutil.copy(hosts.caller / "hosts", folder)
    (hosts.caller / "one").write_text("alpha slots=1\n")
    hosts.caller = folder
    done = hosts.run("pretrain", "--hostfile", "hosts", MATS_DRY_RUN="")
    assert done.returncode == 2 and not hosts.contacted.exists()
    assert f"holds the character {character}, which a shell on the other hosts would read another way" in done.stderr
    assert program_of(hosts, "--launcher", "openmpi")[0].endswith("pretrain.py")
    assert hosts.run("pretrain", "--hostfile", "../one").returncode == 0, "one host alone needs no shell"


@pytest.mark.parametrize("value", ["$(touch pwned)", "`x`", 'a"; touch pwned; "', "back\\slash", "%h"])
def test_a_variable_that_a_shell_would_expand_is_refused(hosts, value):
    line = refused(hosts, NCCL_SOCKET_IFNAME=value)
    assert "the value of NCCL_SOCKET_IFNAME holds the character" in line
    assert program_of(hosts, "--launcher", "openmpi")[0].endswith("pretrain.py")
    hosts.environment["OTHER"] = value  # DeepSpeed hands on those with certain beginnings
    assert program_of(hosts)[0].endswith("pretrain.py")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GLOO=eth0\nA; touch pwned; B=1\n", "line 2: 'A;touchpwned;B' is no name of a variable"),
        ("# comment=1\n", "line 1: '#comment' is no name of a variable"),
        ("GLOO=eth0\n\nB=2\n", "line 2: expected NAME=VALUE, got ''"),
        ("GLOO=eth0\rB;touch;C=2\n", "line 1: expected NAME=VALUE"),
    ],
)
def test_a_file_of_variables_is_read_before_deepspeed_does(hosts, text, words):
    for folder, method in ((hosts.caller, "pdsh"), (Path(hosts.environment["HOME"]), "slurm")):
        (folder / ".deepspeed_env").write_bytes(text.encode())
        assert words in refused(hosts, "--launcher", method)
        (folder / ".deepspeed_env").unlink()
    (hosts.caller / "variables").write_bytes(text.encode())
    assert words in refused(hosts, "--launcher", "openmpi", DS_ENV_FILE="variables")


def test_values_of_that_file_are_looked_at_too(hosts):
    file = hosts.caller / ".deepspeed_env"
    file.write_text("GLOO_SOCKET_IFNAME = eth0\nX=a b c\nLD_LIBRARY_PATH=$HOME/lib")
    assert "line 3: the value of LD_LIBRARY_PATH holds the character $" in refused(hosts)
    file.write_text("GLOO_SOCKET_IFNAME = eth0\nX=a b c\n")
    assert program_of(hosts)[0].endswith("pretrain.py")


def test_no_other_hostfile_is_taken_without_being_named(hosts):
    """DeepSpeed's own default is /job/hostfile."""
    for arguments in ([], ["--include", "localhost:0"]):
        _, launcher, _ = hosts.launch_plan("pretrain", *arguments)
        assert launcher[launcher.index("--hostfile") + 1] == os.devnull


def test_a_machine_whose_name_ends_as_another_is_not_taken_for_it(hosts):
    write_hosts(hosts, "a slots=1", "aa slots=1")
    write_script(hosts.tools / "pdsh", 'echo "aa: answered"')
    done = hosts.run("pretrain", "--hostfile", "hosts", MATS_DRY_RUN="")
    assert done.returncode == 1 and "cannot start anything on a: " in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["pretrain"], ["other", "LS0A"], ["pretrain", "***"], ["pretrain", "YWJj"], ["pretrain", "é"]]
)
def test_what_launch_sh_has_not_encoded_is_one_error(words):
    done = subprocess.run([sys.executable, ROOT / "mats_ds" / "run_encoded.py", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: expected ") and len(done.stderr.splitlines()) == 1
