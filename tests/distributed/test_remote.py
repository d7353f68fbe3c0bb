"""What goes to other hosts: every argument arrives as it is, and what a shell over there would
expand is refused.

The stand-in for pdsh does what pdsh 2.34 was seen to do: %h, %u and %n of the command are replaced,
what follows an empty argument is lost, the rest is joined by spaces and run by a shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.distributed import remote
from mats_ds.distributed.remote import check_hosts, check_launcher, check_paths, check_variables, encode_arguments, find_unsafe
from mats_ds.distributed.run_encoded import decode_arguments

ROOT = Path(__file__).resolve().parents[2]
RUN_ENCODED = ROOT / "mats_ds" / "distributed" / "run_encoded.py"
ARGUMENTS = [
    "$(touch pwned)", "`touch pwned`", "$HOME", "${HOME}", "a b", "a  b ", "'single'", '"double"', "it's \"both\"", "back\\slash",
    "end\\", "\\", ";", "a;touch pwned", "&", "a|b", "||", ">out", "<in", "(x)", "*", "?", "[ab]*", "{a,b}", "~", "a~", "#c",
    "x #y", "!x", "^", "new\nline", "\n", "tab\tx", "", "é", "日本", "\u00a0", "-dash", "--", "%h", "%u%n", "100%", "%%h",
    "=zsh", "a=b", ":", "\x1b[31m", "data.manifest='c: d'", "x.y=[1, 2]", "$'a\\nb'", os.fsdecode(b"no utf-8 \xff"),
]  # fmt: skip
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
    answer, _ = job.communicate()
    print("".join(f"{host}: {text}\n" for text in answer.splitlines()), end="")
sys.exit(max(job.returncode for _, job in jobs))
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder of programs in front of PATH, with that pdsh; hosts are this machine."""
    folder = tmp_path / "tools"
    write_program(folder / "pdsh", f"#!{sys.executable}\n{PDSH}")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("CONTACTED", str(tmp_path / "contacted"))
    return folder


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_argument_survives_a_shell_on_the_way(tools, tmp_path, monkeypatch, shell):
    """It becomes one safe word, which is the same for every shell and comes back as it was."""
    monkeypatch.setenv("SHELL_THERE", shell)
    program, words = encode_arguments(ROOT / "mats_ds" / "pretrain.py", ["--out", "x", *ARGUMENTS])
    assert program == RUN_ENCODED and words[0] == "pretrain" and len(words) == 2
    show = "import sys; print(*sys.argv[1:])"
    there = subprocess.run(["pdsh", "-w", "alpha", sys.executable, "-c", f"'{show}'", *words], capture_output=True, text=True)
    assert there.stdout.split()[1:] == words
    assert [os.fsdecode(word) for word in decode_arguments(words[1])] == ["--out", "x", *ARGUMENTS]
    assert not list(tmp_path.rglob("pwned"))


def test_each_by_itself_is_seen_to_need_it():
    program = ROOT / "mats_ds" / "pretrain.py"
    plain = [word for word in [*ARGUMENTS, "runs/a_b-1.csv"] if encode_arguments(program, [word]) == (program, [word])]
    assert plain == ["-dash", "--", "a=b", "runs/a_b-1.csv"]
    readable = ["--recipe", "k400", "data.manifest=/data/a-b_c.csv", "optim.base_lr=1e-4", "x.y=1,2", "a@b:c+d"]
    assert encode_arguments(program, readable) == (program, readable)


@pytest.mark.parametrize(
    "words", [[], ["pretrain"], ["other", "LS0A"], ["pretrain", "***"], ["pretrain", "YWJj"], ["pretrain", "é"]]
)
def test_what_was_not_encoded_is_one_error(words):
    done = subprocess.run([sys.executable, RUN_ENCODED, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: expected ") and len(done.stderr.splitlines()) == 1


def test_paths_hold_nothing_that_a_shell_reads():
    check_paths("/data/a-b_c/é日本", Path("/work"))
    for path, character in {"/a b": " ", "/$(x)": "$", "/per%hcent": "%", "/new\nline": "\n", "/it's": "'"}.items():
        assert find_unsafe(path) == character
        with pytest.raises(ValueError, match="openmpi or slurm"):
            check_paths("/good", path)


@pytest.mark.parametrize("value", ["$(touch pwned)", "`x`", 'a"; touch pwned; "', "back\\slash", "%h"])
def test_a_variable_that_a_shell_would_expand_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="the value of NCCL_SOCKET_IFNAME holds the character"):
        check_variables({"NCCL_SOCKET_IFNAME": value}, in_shell=True)
    check_variables({"NCCL_SOCKET_IFNAME": value}, in_shell=False)
    # DeepSpeed hands on those with certain beginnings
    check_variables({"OTHER": value}, in_shell=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GLOO=eth0\nA; touch pwned; B=1\n", "line 2: 'A;touchpwned;B' is no name of a variable"),
        ("# comment=1\n", "line 1: '#comment' is no name of a variable"),
        ("GLOO=eth0\n\nB=2\n", "line 2: expected NAME=VALUE, got ''"),
        ("GLOO=eth0\rB;touch;C=2\n", "line 1: expected NAME=VALUE"),
        ("GLOO_SOCKET_IFNAME = eth0\nX=a b c\nLD_LIBRARY_PATH=$HOME/lib", r"line 3: the value of LD_LIBRARY_PATH .*\$"),
    ],
)
def test_a_file_of_variables_is_read_before_deepspeed_does(tmp_path, monkeypatch, text, words):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for file, environment in ((".deepspeed_env", {}), ("../.deepspeed_env", {}), ("own", {"DS_ENV_FILE": "own"})):
        Path(file).write_bytes(text.encode())
        with pytest.raises(ValueError, match=words):
            check_variables(environment, in_shell=True)
        Path(file).unlink()
    Path(".deepspeed_env").write_text("GLOO_SOCKET_IFNAME = eth0\nX=a b c\n")
    check_variables({}, in_shell=True)
    Path(".deepspeed_env").write_text("")
    check_variables({}, in_shell=True)


def test_hosts_are_asked_for_their_paths(tools, tmp_path, monkeypatch):
    (tmp_path / "it's there").touch()
    check_hosts(["alpha", "beta"], [tmp_path / "it's there"])
    with pytest.raises(FileNotFoundError) as caught:
        check_hosts(["alpha", "beta"], [tmp_path, "/no where"])
    assert str(caught.value).splitlines()[1:] == ["  alpha: lacks /no where", "  beta: lacks /no where"]
    write_program(tools / "pdsh", 'echo "$PDSH_RCMD_TYPE $PDSH_SSH_ARGS_APPEND" > "$CONTACTED"; echo "aa: answered"')
    write_program(tools / "pdsh", "#!/bin/sh\n" + (tools / "pdsh").read_text())
    check_hosts(["aa"], ["/"], ssh_port="2222")
    assert "ssh" in (tmp_path / "contacted").read_text() and "-p 2222" in (tmp_path / "contacted").read_text()
    # a name that ends another is not taken for it
    with pytest.raises(ConnectionError, match="on a: ssh without a password"):
        check_hosts(["a", "aa"], ["/"])


def test_hosts_that_do_not_answer_are_named_with_what_ssh_printed(tools):
    write_program(tools / "pdsh", "#!/bin/sh\necho 'alpha: answered'; echo 'beta: Permission denied' >&2; exit 1")
    with pytest.raises(ConnectionError, match="on beta gamma: ssh without a password") as caught:
        check_hosts(["alpha", "beta", "gamma"], ["/"])
    assert "beta: Permission denied" in str(caught.value) and "alpha: answered" not in str(caught.value)


def test_the_program_of_a_launcher_must_be_here(tools, monkeypatch, tmp_path):
    check_launcher("pdsh")
    for name, fix in {"openmpi": "openmpi-bin", "slurm": "SLURM"}.items():
        with pytest.raises(FileNotFoundError, match=fix):
            check_launcher(name)
    (tools / "pdsh").unlink()
    with pytest.raises(FileNotFoundError, match="apt-get install pdsh"):
        check_launcher("pdsh")
    with pytest.raises(ValueError, match="pdsh, openmpi or slurm, got 'lsf'"):
        check_launcher("lsf")
    monkeypatch.setattr(remote, "MVAPICH_FILE", tmp_path / "link")
    check_launcher("mvapich")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="remove it first"):
        check_launcher("mvapich")
