#!/usr/bin/env bash
# The one door: install, demo, test, prepare data, pre-train, report. `bash launch.sh help` lists the commands.
if ((BASH_VERSINFO[0] < 4)); then
  echo "launch.sh: needs bash 4 or newer, this is $BASH_VERSION" >&2
  exit 1
fi
set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)"
VENV="$ROOT/.venv"
STAMP="$VENV/.mats_ds-installed"
COMMANDS=(demo test prepare pretrain finetune evaluate extract convert probe visualize plan report setup help)
CPU_RANKS=2
PYTHON="" # the interpreter that holds the packages; `setup` fills it in
LOCKED="" # set by `setup --locked`

print_help() {
  cat <<'HELP'
Usage: bash launch.sh COMMAND [ARGUMENTS]

  demo [VIDEO_DIR]        install, pre-train a tiny MATS on the videos of VIDEO_DIR (none: a small synthetic set is
                          written into data/synthetic/), on all GPUs or on two CPU ranks, and end with the report
  test [PYTEST_ARGS]      run the tests; without arguments, all that are not slow (and, without a GPU, not gpu)
  pretrain [OPTIONS]      deepspeed mats_ds/pretrain.py on all GPUs (two CPU ranks without one). --num_gpus N,
                          --hostfile F (see below) and the other options of the deepspeed launcher go to the launcher,
                          the rest to pretrain.py; --ds_config is ds_configs/zero2.json unless given
  finetune [OPTIONS]      mats_ds/finetune.py on all ranks, as pretrain; --ds_config is ds_configs/zero2_finetune.json
  prepare TASK ...        python mats_ds/prepare.py: import annotations, check videos, transcode them (prepare --help)
  evaluate ...            mats_ds/evaluate.py on all ranks, as pretrain: test a classifier on videos; with --video FILE,
                          classify one (evaluate --help)
  extract ...             mats_ds/extract.py on all ranks: the features of every video of a manifest (extract --help)
  convert SOURCE [DEST]   python mats_ds/convert.py: weights of VideoMAE, EVEREST, Hugging Face and our runs (convert --help)
  probe ...               python mats_ds/probe.py: k-NN, linear and attentive probe of frozen features (probe --help)
  visualize VIDEO ...     python mats_ds/visualize.py: what a model sees of a video, as .mp4, .gif or .png (visualize --help)
  plan [OPTIONS]          python profiling/plan.py: memory, FLOPs and hours before a run, without a GPU (plan --help)
  report [RUN_DIR ...]    python profiling/report.py
  setup [--locked]        only install; --locked: into .venv, the very versions of requirements.lock, checked by their hashes
  help                    this page

The first command creates .venv next to launch.sh and installs into it (6 to 8 GB). An active environment that already
holds the packages is used as it is and never changed. A CUDA 12 driver gets the CUDA 12 builds of torch and DALI.

Several machines: pretrain, finetune, evaluate and extract take
  --hostfile F            a line a machine, "NAME slots=GPUS"; this project, its .venv and the folder that you stand in must
                          be at the same path on all of them, and --out on a disk that they share
  --launcher L            what starts the ranks: pdsh (over ssh without a password; the default), openmpi (mpirun), or
                          slurm (srun, inside a job; slurm.sbatch is a whole job)
  --no_ssh --node_rank I --master_addr A    start only the ranks of machine I here: type it on every machine of the file
  --num_nodes N, --num_gpus N, --include and --exclude HOST[:SLOT,...] take a part of the file (not with openmpi);
  --master_addr A, --master_port P, --ssh_port P, --launcher_args "..." go to the launcher as they are
  With pdsh, these paths must hold no space, quote or other character that a shell reads; arguments may hold any of them.
  NCCL_* and PYTHON* variables reach the other machines; others, such as GLOO_SOCKET_IFNAME or
  OMP_NUM_THREADS, where ~/.deepspeed_env or ./.deepspeed_env lists them, a NAME=VALUE a line.

Environment variables
  MATS_PYTHON             the Python to use: as it is if it holds the packages, otherwise to create .venv (3.10 to 3.14)
  MATS_DRY_RUN=1          print the commands that install and train instead of running them
  UV_TORCH_BACKEND=cpu    uv's own: a torch without CUDA (from PyTorch's index) for a machine without a GPU
  UV_DEFAULT_INDEX=URL    uv's own: a package mirror; uv does not read pip's settings
  CUDA_VISIBLE_DEVICES    the GPUs to use; empty: none, run on the CPU
  OMP_NUM_THREADS         threads of each CPU rank (default: cores / ranks)
HELP
}

plain() { # plain TEXT...: without the control characters (but tabs and new lines) that a terminal may obey; 4000 bytes at most
  local LC_ALL=C text="$*"
  text="${text:0:4000}"
  text="${text//[$'\001'-$'\010'$'\013'-$'\037'$'\177']/?}"
  printf '%s\n' "${text//$'\302'[$'\200'-$'\237']/?}" # U+0080 to U+009F in UTF-8
}
say() { plain "==> $*" >&2; }
fail() { # fail STATUS MESSAGE...
  plain "launch.sh: ${*:2}" >&2
  exit "$1"
}
is_dry() { [[ -n ${MATS_DRY_RUN:-} && $MATS_DRY_RUN != 0 ]]; }
show() { printf '+'; printf ' %q' "$@"; printf '\n'; }
run() { if is_dry; then show "$@"; else "$@"; fi; }
run_last() { # become the command: signals and the exit status are then its own
  if is_dry; then show "$@"; else exec "$@"; fi
}

run_group() { # run a command in a process group of its own, and leave nobody of that group behind: the deepspeed launcher
  # does not pass a signal on to its ranks. Where util-linux is here, the command gets SIGTERM when this script is killed.
  local child status=0 got="" wait_tenths leash=(setpriv --pdeathsig TERM)
  if is_dry; then
    show "$@"
    return
  fi
  "${leash[@]}" true 2>/dev/null || leash=(env)
  set -m
  "${leash[@]}" "$@" </dev/null &
  child=$!
  set +m
  trap 'got=INT' INT
  trap 'got=TERM' TERM HUP
  wait "$child" || status=$?
  case "$got" in
    INT) status=130 ;;
    TERM) status=143 ;;
  esac
  kill -TERM -- "-$child" 2>/dev/null || true
  for ((wait_tenths = 0; wait_tenths < 300; wait_tenths++)); do
    kill -0 -- "-$child" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL -- "-$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || true
  trap - INT TERM HUP
  if [[ -n $got ]]; then
    echo "launch.sh: stopped by SIG$got" >&2
    exit "$status"
  fi
  return "$status"
}

# ---------------------------------------------------------------------------------------------- what this machine has
driver_cuda() { # the newest CUDA that the driver supports ("12.8"); nothing without a working driver
  local found
  command -v nvidia-smi >/dev/null || return 0
  found="$(timeout 60 nvidia-smi 2>/dev/null)" || return 0
  if [[ $found =~ CUDA[A-Za-z\ ]*Version\ *:\ *([0-9]+(\.[0-9]+)?) ]]; then
    echo "${BASH_REMATCH[1]}"
  elif [[ $found =~ (Driver|KMD)\ Version\ *:\ *([0-9]+) ]]; then # drivers from 580 on bring CUDA 13, from 525 on CUDA 12
    if ((BASH_REMATCH[2] >= 580)); then echo 13.0; elif ((BASH_REMATCH[2] >= 525)); then echo 12.0; else echo 11.0; fi
  fi
}

choose_build() { # the extra of pyproject.toml for this machine: cuda12 or cuda13
  local cuda
  case "${UV_TORCH_BACKEND:-auto}" in
    cu12*) echo cuda12 && return ;;
    cu13* | cpu) echo cuda13 && return ;;
  esac
  cuda="$(driver_cuda)"
  case "${cuda%%.*}" in
    "") echo cuda13 ;;
    12) echo cuda12 ;;
    *) if ((${cuda%%.*} >= 13)); then echo cuda13; else
      fail 1 "the NVIDIA driver supports CUDA $cuda only; CUDA 12 needs driver 525 or newer"
    fi ;;
  esac
}

list_gpus() { # one "index uuid" line a GPU; nothing without one
  local node
  if command -v nvidia-smi >/dev/null; then
    { timeout 60 nvidia-smi -L 2>/dev/null || true; } | sed -n 's/^GPU \([0-9]*\):.*(UUID: \([^)]*\)).*/\1 \2/p'
  else # a container may have the devices without the tool
    for node in /dev/nvidia[0-9]*; do [[ -e $node ]] && echo "${node#/dev/nvidia} -"; done
  fi
  return 0
}

visible_gpus() { # the indices that may be used, one a line: CUDA_VISIBLE_DEVICES holds indices or UUIDs, up to the first bad one
  local gpus wanted index uuid match listed
  gpus="$(list_gpus)"
  [[ -n $gpus ]] || return 0
  if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
    cut -d' ' -f1 <<<"$gpus"
    return
  fi
  IFS=', ' read -r -a listed <<<"$CUDA_VISIBLE_DEVICES" || true
  for wanted in ${listed[@]+"${listed[@]}"}; do
    match=""
    while read -r index uuid; do
      if [[ $wanted == "$index" || ($wanted == GPU-* && $uuid == "$wanted"*) ]]; then match="$index"; fi
    done <<<"$gpus"
    [[ -n $match ]] || break
    echo "$match"
  done
}

# ---------------------------------------------------------------------------------------------- installing
holds_packages() { # holds_packages PYTHON [EXTRA]: prints what pyproject.toml asks for and PYTHON lacks. Imports none of it.
  "$1" "$ROOT/mats_ds/missing_packages.py" "${@:2}" 2>/dev/null || { echo "a Python that starts"; return 1; }
}

lacks_packages() { # true, with MISSING filled in, where holds_packages prints something
  MISSING="$(holds_packages "$@")" || true
  [[ -n $MISSING ]]
}

# -I: without it, Python would take a module from the folder that the caller stands in
version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
supported() { [[ $(version_of "$1") =~ ^3\.1[0-4]$ ]]; }

find_base() { # an interpreter that the packages support, by its real path (a shim would not survive inside a venv)
  local name
  if [[ -n ${MATS_PYTHON:-} ]]; then
    supported "$MATS_PYTHON" || fail 2 "MATS_PYTHON=$MATS_PYTHON is no Python 3.10 to 3.14"
    set -- "$MATS_PYTHON"
  else
    set -- python3 python python3.12 python3.11 python3.13 python3.10 python3.14
  fi
  for name in "$@"; do
    if supported "$name"; then
      "$name" -I -c 'import sys; print(sys.executable)'
      return
    fi
  done
}

check_venv_is_ours() { # before .venv is made anew: it holds what venv and uv put there, and nothing else
  local entry
  [[ -d $VENV && ! -f $VENV/pyvenv.cfg ]] || return 0
  for entry in "$VENV"/* "$VENV"/.[!.]*; do
    case "${entry##*/}" in
      bin | lib | lib64 | include | share | .gitignore | .lock | CACHEDIR.TAG | "${STAMP##*/}" | "*" | ".[!.]*") ;;
      *) fail 2 "$VENV is in the way: it holds $entry, so it is no environment of Python; give that folder another name" ;;
    esac
  done
}

find_uv() { # uv from PATH, or from an earlier bootstrap
  local uv
  for uv in "$(command -v uv || true)" "$VENV/bin/uv"; do
    if [[ -n $uv ]] && "$uv" --version >/dev/null 2>&1; then
      echo "$uv"
      return
    fi
  done
}

bootstrap_uv() { # bootstrap_uv BASE: uv through venv, else through pip alone; sets UV
  local base="${1:-python3}" aside here="$PWD"
  if is_dry; then
    show "$base" -m venv "$VENV"
    show "$VENV/bin/python" -m pip install uv
    UV="$VENV/bin/uv"
    return
  fi
  say "uv is not here: fetching it with pip"
  check_venv_is_ours
  cd -- "$ROOT" # pip is looked for in the current folder first
  if supported "$base" && "$base" -m venv --clear "$VENV" >/dev/null 2>&1; then
    if "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv; then
      UV="$VENV/bin/uv"
      cd -- "$here"
      return
    fi
    fail 1 "pip could not fetch uv (see above)"
  fi
  rm -rf -- "$VENV"
  aside="$(mktemp -d)"
  export PIP_ROOT_USER_ACTION=ignore
  # shellcheck disable=SC2064 # the path as it is now
  trap "rm -rf -- $(printf %q "$aside")" EXIT
  if "$base" -m pip --version >/dev/null 2>&1 \
    && "$base" -m pip install --quiet --disable-pip-version-check --target "$aside" uv; then
    UV="$aside/bin/uv"
    cd -- "$here"
    return
  fi
  fail 1 "neither uv nor python3's venv is here. On Debian or Ubuntu, type:  sudo apt-get install python3-venv
  then run this again. (Or install uv in any other way.)"
}

stamp_text() { # stamp_text BUILD: what an installation was made from
  echo "$1 $(cat -- "$ROOT/setup.py" "$ROOT/pyproject.toml" | sha256sum | cut -d' ' -f1)"
}

venv_is_current() {
  local build stamped
  [[ -f $STAMP && -x $VENV/bin/python ]] || return 1
  stamped="$(<"$STAMP")"
  [[ $stamped == "$(stamp_text "${stamped%% *}")" ]] || return 1
  build="$(choose_build)" || exit
  # CUDA 12 builds also run on a CUDA 13 driver; the other way round they do not.
  [[ $build == "${stamped%% *}" || $build == cuda13 ]] || return 1
  ! lacks_packages "$VENV/bin/python" test
}

install() {
  local build base UV seconds=$SECONDS
  build="$(choose_build)" || exit
  base="$(find_base)" || exit
  UV="$(find_uv)"
  say "installing into $VENV ($build builds; 6 to 8 GB, some minutes)"
  [[ -n $UV ]] || bootstrap_uv "$base"
  # trust the certificates that this machine trusts, as pip does (UV_NATIVE_TLS is the older name)
  if [[ -f /etc/ssl/certs/ca-certificates.crt ]]; then
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-true}"
  fi
  if ! "$VENV/bin/python" -I -c pass 2>/dev/null; then
    check_venv_is_ours
    run rm -rf -- "$VENV"
    # --directory: uv would obey a uv.toml of the folder that the caller stands in
    run_group "$UV" venv --quiet --python "${base:-3.12}" "$VENV" --directory "$ROOT" \
      || fail 1 "no Python 3.10 to 3.14 was found or could be fetched: install one, or name it with MATS_PYTHON"
  elif [[ -n ${MATS_PYTHON:-} && $(version_of "$VENV/bin/python") != $(version_of "$base") ]]; then
    fail 2 "$VENV holds Python $(version_of "$VENV/bin/python"), MATS_PYTHON is $(version_of "$base"): remove .venv first"
  fi
  local with=("$UV" pip install --directory "$ROOT" --python "$VENV/bin/python" --compile-bytecode) lock=requirements.lock
  [[ $build == cuda13 ]] || lock="requirements-$build.lock"
  if [[ -z $LOCKED ]]; then
    run_group "${with[@]}" --editable ".[$build,test]"
  else # the versions of the lock file, by their hashes; its setuptools then makes the editable package
    run_group "${with[@]}" --require-hashes -r "$lock" && run_group "${with[@]}" --no-deps --no-build-isolation --editable .
  fi || fail 1 "the installation failed (see above). A network that needs a mirror: uv reads UV_DEFAULT_INDEX, not pip's settings"
  is_dry && return
  case "$UV" in
    "$VENV"/* | "$(command -v uv || true)") ;;
    *) "$UV" pip install --quiet --directory "$ROOT" --python "$VENV/bin/python" uv ;; # the one aside is about to go
  esac
  stamp_text "$build" >"$STAMP"
  say "installed in $((SECONDS - seconds)) s"
}

setup() { # setup [EXTRA]: fills in PYTHON, and installs only where nothing that exists will do
  local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" lacking=""
  if [[ -n $LOCKED ]]; then
    PYTHON="$VENV/bin/python"
    install
    return
  fi
  if [[ -n ${MATS_PYTHON:-} ]] && ! lacks_packages "$MATS_PYTHON" "$@"; then
    PYTHON="$(command -v "$MATS_PYTHON")"
    return
  fi
  if [[ -n $active && ! $active -ef $VENV ]]; then
    if ! lacks_packages "$active/bin/python" "$@"; then
      PYTHON="$active/bin/python"
      return
    fi
    lacking="$MISSING"
  fi
  PYTHON="$VENV/bin/python"
  venv_is_current && return
  [[ -z $lacking ]] || say "the active environment lacks $lacking: making .venv instead"
  install
}

# ---------------------------------------------------------------------------------------------- running
free_port() { "$PYTHON" -I -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

is_host() { # RFC 1123, section 2.1: labels of letters, digits and "-", 63 characters each (RFC 1034), 253 in all; "_" is common
  local LC_ALL=C label='[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?'
  ((${#1} <= 253)) && [[ $1 =~ ^$label(\.$label)*$ ]]
}
is_address() { is_host "$1" || [[ $1 == *:* && $1 =~ ^[0-9A-Fa-f:.]+$ ]]; }
is_port() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 < 65536)); }

read_hostfile() { # read_hostfile FILE: the names in it, one a line; its mistakes are errors, all at once
  local line number=0 mistakes=() names=() name mistake
  [[ -f $1 ]] || fail 2 "there is no hostfile $1: it has a line a machine, such as:  node1 slots=8"
  # Python takes a carriage return for the end of a line, and bash leaves zero bytes out: both would see other lines
  (($(tr -d '\t\n\r\040-\176\200-\377' <"$1" | wc -c) == 0)) || mistakes+=("it holds control characters: no text file")
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line="${line%$'\r'}"
    [[ $line != *$'\r'* ]] || mistakes+=("line $number: a carriage return in the middle of it")
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    if [[ ! $line =~ ^[[:space:]]*([^[:space:]]+)[[:space:]]+slots=([1-9][0-9]{0,3})[[:space:]]*(#.*)?$ ]]; then
      mistakes+=("line $number: expected NAME slots=GPUS, got '$line'")
      continue
    fi
    name="${BASH_REMATCH[1]}"
    is_host "$name" || mistakes+=("line $number: '$name' is no host name (letters, digits, '-', '_' and '.'); for a user or an \
IPv6 address, write  Host NAME  with User or HostName into ~/.ssh/config and that NAME here")
    [[ " ${names[*]-} " != *" $name "* ]] || mistakes+=("line $number: $name is there twice")
    names+=("$name")
  done <"$1"
  ((${#names[@]} || ${#mistakes[@]})) || mistakes=("it names no machine; a line of it looks like:  node1 slots=8")
  if ((${#mistakes[@]})); then
    plain "launch.sh: $1: ${mistakes[0]}" >&2
    for mistake in "${mistakes[@]:1:20}"; do plain "  $mistake" >&2; done
    exit 2
  fi
  printf '%s\n' "${names[@]}"
}

choose_hosts() { # choose_hosts NUM_NODES INCLUDE EXCLUDE NAME...: those that take part, one a line
  local count="$1" include="$2" exclude="$3" name part chosen=() wanted=()
  shift 3
  for part in "$include" "$exclude"; do
    [[ $part =~ ^[A-Za-z0-9_.:,@-]*$ ]] || fail 2 "--include and --exclude take HOST[:SLOT,...], joined by @, got '$part'"
  done
  # the pattern above leaves nothing that a word without quotes could expand to
  for part in ${include//@/ } ${exclude//@/ }; do
    [[ $part != *:* || $part =~ ^[^:]+:[0-9]+(,[0-9]+)*$ ]] || fail 2 "'$part': expected HOST or HOST:SLOT,SLOT,... with numbers"
    [[ " $* " == *" ${part%%:*} "* ]] || fail 2 "${part%%:*} is not in the hostfile, which names $*"
  done
  for part in ${include//@/ }; do wanted+=("${part%%:*}"); done
  for name in "$@"; do
    [[ -z $include || " ${wanted[*]-} " == *" $name "* ]] || continue
    [[ "@$exclude@" != *"@$name@"* ]] || continue
    chosen+=("$name")
  done
  ((${#chosen[@]})) || fail 2 "--include and --exclude leave no machine"
  if [[ -n $count ]]; then
    [[ $count =~ ^[1-9][0-9]*$ ]] || fail 2 "--num_nodes takes a number from 1 on, got '$count'"
    ((count <= ${#chosen[@]})) || fail 2 "--num_nodes $count: the hostfile names only ${#chosen[@]}"
    chosen=("${chosen[@]:0:count}")
  fi
  printf '%s\n' "${chosen[@]}"
}

check_launcher() { # check_launcher NAME: is the program here that starts ranks on other machines?
  case "$1" in
    pdsh) command -v pdsh >/dev/null || fail 1 "pdsh is not here. On Debian or Ubuntu, type:  sudo apt-get install pdsh
  (or use --launcher openmpi or slurm, or --no_ssh on every machine: bash launch.sh help)" ;;
    openmpi) command -v ompi_info >/dev/null || fail 1 "mpirun of Open MPI is not here. On Debian or Ubuntu, type:
  sudo apt-get install openmpi-bin" ;;
    slurm) command -v sinfo >/dev/null || fail 1 "srun and sinfo are not here: --launcher slurm works
  on a machine of a SLURM cluster, inside a job (slurm.sbatch is one)" ;;
    mpich | impi) ;;
    mvapich) [[ ! -L /tmp/deepspeed_mvapich_hostfile && (! -e /tmp/deepspeed_mvapich_hostfile || -O /tmp/deepspeed_mvapich_hostfile) ]] \
      || fail 2 "DeepSpeed writes into /tmp/deepspeed_mvapich_hostfile, which is a link or not yours: remove it first" ;;
    *) fail 2 "--launcher takes pdsh, openmpi or slurm, got '$1'" ;;
  esac
}

check_hosts() { # check_hosts SCRIPT PORT HOST...: is every machine reached, with this project, its Python and this folder?
  local script="$1" port="$2" answers host missing=() silent=() question append
  shift 2
  append="${PDSH_SSH_ARGS_APPEND:-} -o BatchMode=yes -o ConnectTimeout=10${port:+ -p $port}"
  # shellcheck disable=SC2016 # expanded over there
  printf -v question 'for f in %q %q %q; do [ -e "$f" ] || echo "lacks $f"; done; echo answered' "$script" "$PYTHON" "$PWD"
  if is_dry; then return; fi
  answers="$(PDSH_RCMD_TYPE=ssh PDSH_SSH_ARGS_APPEND="$append" pdsh -w "$(IFS=, && echo "$*")" "$question" 2>&1)" || true
  for host in "$@"; do
    grep -qxF -- "$host: answered" <<<"$answers" || silent+=("$host")
  done
  if ((${#silent[@]})); then
    fail 1 "cannot start anything on ${silent[*]}: ssh without a password must work (ssh-copy-id). It said:
$(grep -vF -- ': answered' <<<"$answers" | head -n 8 | sed 's/^/  /')"
  fi
  mapfile -t missing < <(grep -F -- ': lacks ' <<<"$answers")
  if ((${#missing[@]})); then
    fail 1 "this project, its Python and this folder must be at the same path on all machines:
$(printf '  %s\n' "${missing[@]:0:8}")"
  fi
}

unsafe_in() { # unsafe_in TEXT: the first character that a shell would not take literally in a word without quotes, or nothing
  local LC_ALL=C left="${1//[A-Za-z0-9_@+=:,.\/-]/}"
  left="${left//[$'\200'-$'\377']/}" # letters of other languages
  [[ -z $left ]] || printf '%q' "${left:0:1}"
}

check_paths() { # DeepSpeed writes these into the line that pdsh gives to a shell over there, without quotes
  local path unsafe
  for path in "$PWD" "$(pwd -P)" "$ROOT" "$PYTHON" "$("$PYTHON" -I -c 'import sys; print(sys.executable)')"; do
    unsafe="$(unsafe_in "$path")"
    [[ -z $unsafe ]] || fail 2 "the path '$path' holds the character $unsafe, which a shell on the other hosts would read \
another way: move it to a path without (a link will not do), or take --launcher openmpi or slurm"
  done
}

check_variable() { # check_variable WHERE NAME VALUE: may DeepSpeed write  export NAME="VALUE";  into that line?
  local LC_ALL=C unsafe
  [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail 2 "$1: '$2' is no name of a variable (in a file, each line is NAME=VALUE)"
  [[ $method == pdsh ]] || return 0
  unsafe="${3//[^\"\$\`\\%]/}"
  [[ -z $unsafe ]] || fail 2 "$1: the value of $2 holds the character ${unsafe:0:1}, which a shell on the other hosts would read \
another way: write it without, or remove the variable"
}

check_variables() { # those that DeepSpeed hands on: by their beginnings, and by its two files
  local pair file line number files name="${DS_ENV_FILE-.deepspeed_env}"
  while IFS= read -r -d '' pair; do
    case "$pair" in
      MLFLOW* | PYTHON* | MV2* | UCX* | NCCL*) check_variable "environment" "${pair%%=*}" "${pair#*=}" ;;
    esac
  done < <(env -0)
  files=("${HOME:-}/$name" "./$name")
  [[ $name != /* ]] || files=("$name")
  for file in "${files[@]}"; do
    [[ -f $file ]] || continue
    number=0
    while IFS= read -r line || [[ -n $line ]]; do
      number=$((number + 1))
      line="${line%$'\r'}"
      [[ $line == *=* && $line != *$'\r'* ]] || fail 2 "$file, line $number: expected NAME=VALUE, got '$line'"
      name="${line%%=*}"
      check_variable "$file, line $number" "${name//[[:blank:]]/}" "${line#*=}"
    done <"$file"
  done
}

encode_script() { # make `script` one word, where one of its words is not safe from the shells on the way (mats_ds/run_encoded.py)
  local word LC_ALL=C safe='^[A-Za-z0-9_@+:,./-][A-Za-z0-9_@+=:,./-]*$'
  for word in ${script[@]+"${script[@]}"}; do
    [[ $word =~ $safe && $word != : ]] && continue # mpirun takes a lone ":" for itself
    script=("$name" "$(printf '%s\0' "${script[@]}" | base64 | tr -d '\n' | tr '+/' '-_')")
    program="$ROOT/mats_ds/run_encoded.py"
    return
  done
}

settle_hosts() { # settle_hosts SCRIPT: checks what launch has read, and adds to its launcher options and variables
  local listed names hosts first
  [[ -z $ssh_port ]] || is_port "$ssh_port" || fail 2 "--ssh_port takes a number from 1 to 65535, got '$ssh_port'"
  [[ -z $address ]] || is_address "$address" || fail 2 "--master_addr takes a host name or an address, got '$address'"
  if [[ -n $no_ssh ]]; then
    [[ $node_rank =~ ^[0-9]+$ ]] || fail 2 "--no_ssh needs --node_rank I, the place of this machine in the hostfile from 0 on"
    [[ -n $address ]] || fail 2 "--no_ssh needs --master_addr A, the address of the first machine of the hostfile"
  else
    check_launcher "$method"
  fi
  listed="$(read_hostfile "$hostfile")" || exit
  mapfile -t names <<<"$listed"
  listed="$(choose_hosts "$num_nodes" "$include" "$exclude" "${names[@]}")" || exit
  mapfile -t hosts <<<"$listed"
  first="${hosts[0]}"
  if [[ -n $no_ssh ]]; then
    ((10#$node_rank < ${#hosts[@]})) || fail 2 "--node_rank $node_rank: there are ${#hosts[@]} machines, counted from 0"
    return
  fi
  if ((${#hosts[@]} > 1)) || [[ -n $force_multi ]]; then # otherwise no shell and no other host is on the way
    [[ $method != pdsh ]] || check_paths
    check_variables
  fi
  encode_script
  case "$method" in
    pdsh) check_hosts "$1" "$ssh_port" "${hosts[@]}" ;;
    openmpi)
      [[ -z $num_gpus$num_nodes$include$exclude ]] \
        || fail 2 "--launcher openmpi takes the whole hostfile: leave the machines out there, not with --num_gpus, --num_nodes, \
--include or --exclude"
      # mpirun does not tell ranks where to meet
      launcher+=(--launcher_args "-x MASTER_ADDR=${address:-$first} -x MASTER_PORT=${port:-29500}${launcher_args:+ $launcher_args}")
      [[ -n $address ]] || launcher+=(--master_addr "$first")
      ;;
    slurm) # ranks know from srun where to meet; ssh may be forbidden
      launcher+=(--no_ssh_check)
      if [[ -n $address ]]; then with+=("MASTER_ADDR=$address"); else launcher+=(--master_addr "$first"); fi
      [[ -z $port ]] || with+=("MASTER_PORT=$port")
      ;;
  esac
}

launch() { # launch NAME [LAUNCHER OPTIONS] [its own]: deepspeed mats_ds/NAME.py with as many ranks as there are accelerators
  local name="$1" with=(env) launcher=() script=() num_gpus="" placed="" port="" config="" default_config="" gpus=() cores
  local hostfile="" method=pdsh no_ssh="" node_rank="" address="" num_nodes="" include="" exclude="" ssh_port="" launcher_args=""
  local option value force_multi="" program="$ROOT/mats_ds/$1.py"
  shift
  while (($#)); do
    case "$1" in
      --num_gpus | --num_gpus=*)
        if [[ $1 == *=* ]]; then num_gpus="${1#*=}"; else num_gpus="${2:-}" && shift; fi
        [[ $num_gpus =~ ^[1-9][0-9]*$ ]] || fail 2 "--num_gpus takes a number from 1 on, got '$num_gpus'"
        ;;
      --hostfile | --include | --exclude | --num_nodes | --master_addr | --master_port | --launcher | --launcher_args | \
        --ssh_port | --node_rank | --hostfile=* | --include=* | --exclude=* | --num_nodes=* | --master_addr=* | \
        --master_port=* | --launcher=* | --launcher_args=* | --ssh_port=* | --node_rank=*)
        option="${1%%=*}"
        if [[ $1 == *=* ]]; then
          value="${1#*=}"
        else
          (($# > 1)) || fail 2 "$1 needs a value"
          value="$2" && shift
        fi
        case "$option" in
          --hostfile) placed=yes hostfile="$value" ;;
          --include) placed=yes include="$value" ;;
          --exclude) placed=yes exclude="$value" ;;
          --num_nodes) placed=yes num_nodes="$value" ;;
          --master_addr) address="$value" ;;
          --master_port) port="$value" ;;
          --launcher) method="${value,,}" ;;
          --launcher_args) launcher_args="$value" ;;
          --ssh_port) ssh_port="$value" ;;
          --node_rank) node_rank="$value" ;;
        esac
        # openmpi's are put together below
        [[ $option == --launcher_args ]] || launcher+=("$option" "$value")
        ;;
      --no_ssh)
        no_ssh=yes
        launcher+=("$1")
        ;;
      --force_multi)
        force_multi=yes
        launcher+=("$1")
        ;;
      --no_ssh_check | --bind_cores_to_rank) launcher+=("$1") ;;
      *)
        [[ $1 == --ds_config || $1 == --ds_config=* ]] && config=given
        script+=("$1")
        ;;
    esac
    shift
  done
  case "$name" in
    pretrain) default_config="$ROOT/ds_configs/zero2.json" ;;
    finetune) default_config="$ROOT/ds_configs/zero2_finetune.json" ;;
    *) config=none ;;
  esac
  [[ -n $config ]] || script=(--ds_config "$default_config" ${script[@]+"${script[@]}"})

  [[ -z $port ]] || is_port "$port" || fail 2 "--master_port takes a number from 1 to 65535, got '$port'"
  if [[ -z $hostfile ]]; then
    [[ -z $no_ssh$num_nodes$force_multi && $method == pdsh ]] \
      || fail 2 "--no_ssh, --num_nodes, --force_multi and --launcher are for several machines: name them with --hostfile F"
  else
    settle_hosts "$ROOT/mats_ds/$name.py"
  fi
  [[ -z $launcher_args || $method == openmpi ]] || launcher+=(--launcher_args "$launcher_args")
  if [[ -n $placed ]]; then
    [[ -z $num_gpus ]] || launcher+=(--num_gpus "$num_gpus")
  else
    mapfile -t gpus < <(visible_gpus)
    if ((${#gpus[@]} == 0)); then
      num_gpus="${num_gpus:-$CPU_RANKS}"
      cores="$(nproc)"
      with=(env "DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}"
        "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > num_gpus ? cores / num_gpus : 1))}"
        "OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}") # spinning threads take the cores that decode video
      launcher+=(--num_gpus "$num_gpus")
    else
      num_gpus="${num_gpus:-${#gpus[@]}}"
      ((num_gpus <= ${#gpus[@]})) || fail 2 "--num_gpus $num_gpus: only ${#gpus[@]} of this machine's GPUs may be used"
      if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then # the launcher drops it beside --num_gpus and takes GPUs 0, 1, ...
        launcher+=(--include "localhost:$(IFS=, && echo "${gpus[*]:0:num_gpus}")")
        with=(env -u CUDA_VISIBLE_DEVICES)
      else
        launcher+=(--num_gpus "$num_gpus")
      fi
    fi
    launcher+=(--quiet) # errors still show
    if [[ -z $port ]]; then # two runs on one machine must not meet on the launcher's fixed port
      if is_dry; then launcher+=(--master_port PORT); else launcher+=(--master_port "$(free_port)"); fi
    fi
  fi
  [[ -n $hostfile ]] || launcher+=(--hostfile /dev/null) # DeepSpeed would take /job/hostfile, unchecked, where there is one
  # Ranks look whether this script is still there (distributed/launcher_watch.py), and -m of Python 3.11 and newer must not take
  # modules from the folder that the caller stands in.
  LAUNCH_SH_PROCESS="$(name_this_process)" PYTHONSAFEPATH=1 \
    run_group "${with[@]}" "$PYTHON" -m deepspeed.launcher.runner ${launcher[@]+"${launcher[@]}"} \
    "$program" ${script[@]+"${script[@]}"}
}

name_this_process() { # what no other process of any host bears: boot, process namespace, number, start in ticks; nothing without /proc
  local boot stat fields
  { read -r boot </proc/sys/kernel/random/boot_id && stat="$(</proc/$$/stat)"; } 2>/dev/null || return 0
  read -r -a fields <<<"${stat##*) }" # after the name, which may hold anything; from the third field on
  echo "$boot $(readlink /proc/self/ns/pid) $$ ${fields[19]}"
}

# ---------------------------------------------------------------------------------------------- commands
demo() {
  local videos="" out data=() status=0
  if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    print_help
    return
  fi
  (($# <= 1)) || fail 2 "demo takes one folder, got $#: $*"
  [[ ${1:-} != *$'\n'* ]] || fail 2 "demo: a new line in the name of the folder $(printf %q "$1"): give it another name"
  if (($#)); then
    [[ -e $1 ]] || fail 2 "demo: there is no folder $1"
    videos="$(realpath -- "$1")"
    # an override is read as YAML: quote a path that YAML might read otherwise
    [[ $videos =~ ^[A-Za-z0-9_/.\ +-]+$ && $videos != *" " ]] || videos="'${videos//\'/\'\'}'"
    # fewer steps than on the synthetic set: with large pictures most of a step is decoding
    data=("data.manifest=$videos" data.max_bad_fraction=0.5 optim.steps=80)
  fi
  setup
  cd -- "$ROOT"
  out="runs/demo-$(date +%Y%m%d-%H%M%S)"
  say "pre-training a tiny MATS into $out"
  launch pretrain --recipe mats_ds/recipes/tiny.yaml --ds_config ds_configs/zero2_tiny.json --out "$out" ${data[@]+"${data[@]}"} \
    || { status=$? && fail "$status" "the training failed (status $status); its folder is $out"; }
  say "report"
  run_last "$PYTHON" profiling/report.py "$out"
}

launch_or_help() { # launch_or_help NAME [ARGUMENTS]: on all ranks, but its help (and one video) in one process
  local argument
  setup
  for argument in "${@:2}"; do
    case "$argument" in
      -h | --help | --video | --video=*) run_last "$PYTHON" "$ROOT/mats_ds/$1.py" "${@:2}" && return ;;
    esac
  done
  launch "$@"
}

# relative paths in their arguments are the caller's: they stay in the caller's folder
pretrain() { launch_or_help pretrain "$@"; }
finetune() { launch_or_help finetune "$@"; }
evaluate() { launch_or_help evaluate "$@"; }
extract() { launch_or_help extract "$@"; }

run_tests() {
  setup test
  cd -- "$ROOT"
  if (($# == 0)); then
    if [[ -n $(visible_gpus) ]]; then set -- -m "not slow"; else set -- -m "not slow and not gpu"; fi
  fi
  run_last "$PYTHON" -m pytest "$@"
}

in_one_process() { # in_one_process SCRIPT [ARGUMENTS]: relative paths are the caller's
  setup
  run_last "$PYTHON" "$ROOT/$1" "${@:2}"
}

report() {
  setup
  local argument
  for argument in "$@"; do # a folder is the caller's; without one, the report looks in this project
    if [[ $argument != -* ]]; then
      run_last "$PYTHON" "$ROOT/profiling/report.py" "$@"
      return
    fi
  done
  cd -- "$ROOT"
  run_last "$PYTHON" profiling/report.py "$@"
}

distance() { # the number of edits from one word to another
  local a="$1" b="$2" i j row previous best
  row=()
  for ((j = 0; j <= ${#b}; j++)); do row[j]=$j; done
  for ((i = 1; i <= ${#a}; i++)); do
    previous=("${row[@]}")
    row=("$i")
    for ((j = 1; j <= ${#b}; j++)); do
      best=$((previous[j - 1] + 1))
      [[ ${a:i-1:1} == "${b:j-1:1}" ]] && best=${previous[j - 1]}
      ((previous[j] + 1 < best)) && best=$((previous[j] + 1))
      ((row[j - 1] + 1 < best)) && best=$((row[j - 1] + 1))
      row[j]=$best
    done
  done
  echo "${row[${#b}]}"
}

unknown() {
  local name near="" edits fewest=4
  ((${#1} <= 40)) || fail 2 "there is no command '${1:0:40}...'. Commands: ${COMMANDS[*]}"
  for name in "${COMMANDS[@]}"; do
    edits="$(distance "$1" "$name")"
    if ((edits < fewest)); then near="; did you mean '$name'?" fewest="$edits"; fi
  done
  fail 2 "there is no command '$1'${near:-.} Commands: ${COMMANDS[*]}"
}

main() {
  local command="${1:-help}"
  (($# == 0)) || shift
  case "$command" in
    demo | report) "$command" "$@" ;;
    prepare | convert | probe | visualize) in_one_process "mats_ds/$command.py" "$@" ;;
    plan) in_one_process profiling/plan.py "$@" ;;
    test) run_tests "$@" ;;
    pretrain | finetune | evaluate | extract) "$command" "$@" ;;
    setup)
      case "${1:-}" in
        "") ;;
        --locked) LOCKED=yes ;;
        *) fail 2 "setup takes --locked or nothing, got '$1'" ;;
      esac
      setup test
      say "ready: $PYTHON"
      ;;
    help | -h | --help) print_help ;;
    *) unknown "$command" ;;
  esac
}

main "$@"
