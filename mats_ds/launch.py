"""Start a program on all ranks: of this machine's GPUs, two on a CPU, or of a hostfile's hosts.

    mats launch pretrain|finetune|evaluate|extract [OPTIONS]   as `mats pretrain ...` and the like

Options of the launcher (below) go to DeepSpeed's launcher, all others to the program as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import contextlib
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mats_ds.core.cli import INTERRUPTED, LAUNCHER_SWITCHES, LAUNCHER_WITH_VALUE, RUN_ERROR, USAGE_ERROR, run_script
from mats_ds.core.format import format_count
from mats_ds.core.interrupts import AGAIN
from mats_ds.core.storage.package_files import check_packages, find_folder
from mats_ds.core.text import say, tell_error
from mats_ds.distributed.hosts import choose_hosts, free_port, is_address, is_port, read_hostfile
from mats_ds.distributed.launcher_watch import describe_end, describe_launcher, find_ranks
from mats_ds.distributed.process_group import Stopped, is_dry_run, run_in_group, show_words
from mats_ds.distributed.remote import (
    check_hosts,
    check_launcher,
    check_paths,
    check_variables,
    encode_arguments,
    list_needed_paths,
)
from mats_ds.distributed.visible_gpus import VARIABLE, choose_gpus, list_gpus

PACKAGE = Path(__file__).resolve().parent
PROGRAMS = ("pretrain", "finetune", "evaluate", "extract")
DEFAULT_JSON = {"pretrain": "zero2.json", "finetune": "zero2_finetune.json"}
CPU_RANKS = 2
DEFAULT_PORT = 29500  # torch's and DeepSpeed's
# of the launcher that starts the ranks here: it logs an error below whatever a rank has ended with,
# also where that rank has said why; what none can say, describe_end says
SILENT = ("--log_level", "critical")
WITH_VALUE, WITHOUT_VALUE = set(LAUNCHER_WITH_VALUE), set(LAUNCHER_SWITCHES)
EXAMPLES = {"--num_gpus": "4", "--hostfile": "hosts.txt", "--master_port": "29501", "--launcher": "slurm"}
ON_SEVERAL_MACHINES = {"--no_ssh", "--num_nodes", "--force_multi", "--launcher"}
CHOOSE_SLOTS = {"--hostfile", "--include", "--exclude", "--num_nodes"}  # these choose the ranks


@dataclass(frozen=True)
class Command:
    """The command that starts the ranks: its words, the variables that are set for it, and those
    that are unset."""

    words: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def show(self) -> str:
        """The command as a line for a shell."""
        unset = [word for name in self.without for word in ("-u", name)]
        settings = [*unset, *(f"{name}={value}" for name, value in self.variables.items())]
        return show_words([*(["env", *settings] if settings else []), *self.words])


def main(arguments: list[str] | None = None) -> int:
    """Start the ranks of the program that the first argument names, and return their exit
    status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        say(*(__doc__ or "").splitlines(), "", *(PACKAGE / "commands.txt").read_text(encoding="utf-8").splitlines())
        return 0
    if name not in PROGRAMS:
        tell_error(f"expected {', '.join(PROGRAMS)} and its arguments, got {name!r}")
        return USAGE_ERROR
    return launch(name, rest)


def launch(name: str, arguments: Sequence[str]) -> int:
    """Run mats_ds/NAME.py on all ranks: their exit status, or RUN_ERROR or USAGE_ERROR with a
    message where none is started.

    After a signal: INTERRUPTED where the ranks have saved and can go on, else 128 + its number."""
    try:
        command = make_command(name, arguments, os.environ, is_dry=is_dry_run())
        if not is_dry_run():
            check_packages(f"the start of the ranks of {name}", "deepspeed")
    except (ValueError, OSError) as error:
        tell_error(error)
        return USAGE_ERROR if isinstance(error, ValueError) else RUN_ERROR
    if is_dry_run():
        print(command.show(), flush=True)
        return 0
    check_arguments(name, arguments)
    if sys.stderr.isatty():
        say(f"starting the ranks of {name}: importing torch and DeepSpeed takes some seconds", stream=sys.stderr)
    # -m of Python 3.11 and newer must not take modules from the folder that the caller stands in
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **describe_launcher(), **command.variables}
    for variable in command.without:
        environment.pop(variable, None)
    again = f"{AGAIN}, a training that has begun with --resume auto" if name in DEFAULT_JSON else AGAIN
    try:
        status = run_in_group(command.words, environment, find_workers=find_ranks)
    except Stopped as stopped:
        if not stopped.is_answered:
            say(f"{stopped}: {again}", stream=sys.stderr)
        return INTERRUPTED if stopped.status == INTERRUPTED else 128 + stopped.number
    if why := describe_end(status):
        say(f"stopped: {why} (status {status}); {again}", stream=sys.stderr)
    return status


def check_arguments(name: str, arguments: Sequence[str]) -> None:
    """Raises ValueError for arguments, recipe, JSON and paths that no rank could start with, and
    exits with USAGE_ERROR for arguments that the program does not take."""
    options, script = _split(name, arguments)
    sys.argv = [f"mats {name}", *script]  # argparse takes the program's name from it
    with contextlib.suppress(OSError):  # of a disk: the ranks end with their own status for it
        importlib.import_module(f"mats_ds.{name}").check(script, reads_paths="--hostfile" not in options)


def make_command(name: str, arguments: Sequence[str], environment: Mapping[str, str], *, is_dry: bool = False) -> Command:
    """The command that starts mats_ds/NAME.py on all ranks.

    is_dry: leave out what other machines must be asked for. Raises ValueError for a wrong option,
    hostfile, variable or path, and OSError where a program or a host is not there.
    """
    options, script = _split(name, arguments)
    program = PACKAGE / f"{name}.py"
    if (port := options.get("--master_port", "")) and not is_port(port):
        raise ValueError(f"--master_port takes a number from 1 to 65535, got {port!r}")
    if "--num_gpus" in options and not re.fullmatch(r"[1-9][0-9]{0,6}", options["--num_gpus"]):
        raise ValueError(f"--num_gpus takes a number from 1 on, got {options['--num_gpus']!r}")
    if "--hostfile" in options:
        return _on_hosts(program, script, options, environment, is_dry=is_dry)
    if ON_SEVERAL_MACHINES & options.keys():
        raise ValueError(
            "--no_ssh, --num_nodes, --force_multi and --launcher are for several machines: name them with --hostfile F"
        )
    if not CHOOSE_SLOTS & options.keys():
        return _on_this_machine(program, script, options, environment, port="PORT" if is_dry else "")
    # DeepSpeed would take /job/hostfile, unchecked, where there is one
    return _run_launcher([*_to_words(options), *SILENT, "--hostfile", os.devnull], program, script)


def _split(name: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """As `split_arguments`, with the program's own JSON where none is given."""
    options, script = split_arguments(arguments)
    if name in DEFAULT_JSON and not any(word.partition("=")[0] == "--ds_config" for word in script):
        script = ["--ds_config", str(find_folder("ds_configs") / DEFAULT_JSON[name]), *script]
    return options, script


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's options, in their order ("" for one without a value), and the program's
    arguments."""
    options: dict[str, str] = {}
    script: list[str] = []
    rest = iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        # hyphens and underscores are one, as in the programs' own options
        same = f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option
        option = same if same in WITH_VALUE | WITHOUT_VALUE else option
        if option in WITHOUT_VALUE and not equals:
            options[option] = ""
        elif option in WITH_VALUE:
            if not equals and (value := next(rest, None)) is None:
                raise ValueError(f"{option} needs a value, such as {option} {EXAMPLES.get(option, 'VALUE')}")
            options[option] = value.lower() if option == "--launcher" else value
        else:
            script.append(word)
    return options, script


def _to_words(options: Mapping[str, str]) -> list[str]:
    """The options as DeepSpeed's launcher reads them; `=` where a value could look like an
    option."""
    words: list[str] = []
    for option, value in options.items():
        if option in WITHOUT_VALUE:
            words.append(option)
        else:
            words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    return words


def _run_launcher(options: Sequence[str], program: Path, script: Sequence[str], **variables: str) -> Command:
    return Command([sys.executable, "-m", "deepspeed.launcher.runner", *options, str(program), *script], variables)


def _on_this_machine(
    program: Path, script: Sequence[str], options: Mapping[str, str], environment: Mapping[str, str], *, port: str
) -> Command:
    """All GPUs that may be used, or CPU_RANKS ranks without one."""
    gpus = choose_gpus(list_gpus(), environment)
    asked = int(options.get("--num_gpus", "0"))
    if gpus and asked > len(gpus):
        raise ValueError(f"--num_gpus {asked}: only {len(gpus)} of this machine's GPUs may be used")
    others = {option: value for option, value in options.items() if option != "--num_gpus"}
    # two runs on one machine must not meet on the launcher's fixed port
    words = [*_to_words({"--master_port": port or str(free_port()), **others}), *SILENT, "--hostfile", os.devnull]
    if not gpus:
        num_ranks = asked or CPU_RANKS
        cores = len(os.sched_getaffinity(0))
        defaults = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(max(1, cores // num_ranks)),
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads take the cores that decode video
        }
        variables = {name: environment.get(name) or value for name, value in defaults.items()}
        return _run_launcher(["--num_gpus", str(num_ranks), *words], program, script, **variables)
    used = gpus[: asked or len(gpus)]
    if any(gpu.is_mig for gpu in used):
        return _on_mig([gpu.uuid for gpu in used], program, script)
    if environment.get(VARIABLE, "all").strip().lower() == "all":
        command = _run_launcher(["--num_gpus", str(len(used)), *words], program, script)
        return Command(command.words, without=(VARIABLE,) if VARIABLE in environment else ())
    # beside --num_gpus the launcher would drop the variable and take GPUs 0, 1, ...
    slots = ",".join(str(gpu.index) for gpu in used)
    command = _run_launcher(["--include", f"localhost:{slots}", *words], program, script)
    # a UUID has become nvidia-smi's index, which CUDA counts in another order by default
    if "GPU-" in environment[VARIABLE]:
        command.variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return Command(command.words, command.variables, without=(VARIABLE,))


def _on_mig(uuids: Sequence[str], program: Path, script: Sequence[str]) -> Command:
    """One rank on one MIG part, without DeepSpeed's launcher, which knows GPUs by their indices
    alone."""
    if len(uuids) > 1:
        raise ValueError(
            f"{VARIABLE} names {len(uuids)} GPUs with MIG parts among them ({', '.join(uuids)}): a process sees one part, and "
            "NCCL does not connect several; name one, or complete GPUs"
        )
    return Command([sys.executable, "-u", str(program), *script], {VARIABLE: uuids[0]})


def _on_hosts(
    program: Path, script: Sequence[str], options: Mapping[str, str], environment: Mapping[str, str], *, is_dry: bool
) -> Command:
    """The hosts of a hostfile. The file and all that reaches a shell over there is checked before
    anybody is contacted."""
    method = options.get("--launcher", "pdsh")
    address, port, ssh_port = (options.get(name, "") for name in ("--master_addr", "--master_port", "--ssh_port"))
    if ssh_port and not is_port(ssh_port):
        raise ValueError(f"--ssh_port takes a number from 1 to 65535, got {ssh_port!r}")
    if address and not is_address(address):
        raise ValueError(f"--master_addr takes a host name or an address, got {address!r}")
    node_rank = options.get("--node_rank", "")
    is_alone = "--no_ssh" in options
    if not is_alone:
        check_launcher(method)
    elif not re.fullmatch(r"[0-9]{1,6}", node_rank):
        raise ValueError("--no_ssh needs --node_rank I, the index of this machine in the hostfile from 0 on")
    elif not address:
        raise ValueError("--no_ssh needs --master_addr A, the address of the first machine of the hostfile")
    chosen = {name.removeprefix("--"): options.get(name, "") for name in ("--num_nodes", "--include", "--exclude")}
    hosts = choose_hosts(read_hostfile(options["--hostfile"]), **chosen)
    if is_alone:
        if int(node_rank) >= len(hosts):
            raise ValueError(f"--node_rank {node_rank}: the hostfile has {format_count(len(hosts), 'machine')}, counted from 0")
        return _run_launcher([*_to_words(options), *SILENT], program, script)
    is_elsewhere = len(hosts) > 1 or "--force_multi" in options
    if is_elsewhere:  # otherwise no shell and no other host is on the way
        if method == "pdsh":
            check_paths(*list_needed_paths(program))
        check_variables(environment, in_shell=method == "pdsh")
    started, words = encode_arguments(program, script)
    own = dict(options)
    variables: dict[str, str] = {}
    if method == "pdsh" and not is_dry:
        check_hosts(hosts, list_needed_paths(program), ssh_port=ssh_port)
    elif method == "openmpi":
        if {"--num_gpus", "--num_nodes", "--include", "--exclude"} & options.keys():
            raise ValueError(
                "--launcher openmpi takes all of the hostfile: leave the machines out there, not with --num_gpus, --num_nodes, "
                "--include or --exclude"
            )
        # ranks of mpirun learn the address to meet at from here alone
        meeting = f"-x MASTER_ADDR={address or hosts[0]} -x MASTER_PORT={port or DEFAULT_PORT}"
        own["--launcher_args"] = f"{meeting} {options.get('--launcher_args', '')}".rstrip()
        own.setdefault("--master_addr", hosts[0])
    elif method == "slurm":  # ranks know from srun where to meet; ssh may be forbidden
        own["--no_ssh_check"] = ""
        own.setdefault("--master_addr", hosts[0])
        variables = {name: value for name, value in {"MASTER_ADDR": address, "MASTER_PORT": port}.items() if value}
    return _run_launcher([*_to_words(own), *(() if is_elsewhere else SILENT)], started, words, **variables)


if __name__ == "__main__":
    sys.exit(run_script(main))
