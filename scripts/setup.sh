#!/bin/sh
# Finds a suitable Python and hands over to bootstrap.py. Uses shell builtins only, so that it works on a bare machine.
#   PYTHON=/path/to/python sh scripts/setup.sh    use exactly this interpreter
#   sh scripts/setup.sh --find-python             print the interpreter that would be used
#   WORLDLOOP_SETUP_DRY_RUN=1                     print what would be done, do nothing
set -eu

here=${0%/*}
[ "$here" != "$0" ] || here=.
root=$(CDPATH='' cd -- "$here/.." && pwd -P)

# 3.12 and 3.13 are the versions for which every pinned package has a wheel.
probe='import sys, venv
if not (3, 12) <= sys.version_info[:2] <= (3, 13): sys.exit(1)
import importlib.util
sys.exit(0 if importlib.util.find_spec("ensurepip") else 7)'
without_venv=

# A candidate must really run: a pyenv shim exists on PATH and fails when its version is not selected.
try() {
    [ -x "$1" ] && [ ! -d "$1" ] || return 1
    status=0
    "$1" -I -c "$probe" >/dev/null 2>&1 </dev/null || status=$?
    [ "$status" -ne 7 ] || [ -n "$without_venv" ] || without_venv=$1
    [ "$status" -eq 0 ]
}

# Directories that may hold an interpreter, one per line; a pattern without a match stays and is skipped by `try`.
list_directories() {
    version=$1
    (
        IFS=:
        set -f
        for directory in $PATH; do printf '%s\n' "$directory"; done
    )
    for home in "${PYENV_ROOT:-}" "${HOME:-/nonexistent}/.pyenv"; do
        [ -z "$home" ] || printf '%s\n' "$home"/versions/"$version"*/bin
    done
    printf '%s\n' "${HOME:-/nonexistent}"/.local/bin "${HOME:-/nonexistent}"/.local/share/uv/python/cpython-"$version"*/bin
    [ -z "${CONDA_PREFIX:-}" ] || printf '%s\n' "$CONDA_PREFIX/bin"
    # shellcheck disable=SC2086  # the default is a list of patterns to expand
    printf '%s\n' ${WORLDLOOP_PYTHON_DIRECTORIES-/usr/bin /usr/local/bin /usr/local/*/bin /usr/local/*/*/bin /opt/*/bin /opt/*/*/bin}
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        case $PYTHON in
            */*) chosen=$PYTHON ;;
            *) chosen=$(command -v -- "$PYTHON" || printf '%s' "$PYTHON") ;;
        esac
        if try "$chosen"; then found=$chosen; return 0; fi
        printf '[setup] error: PYTHON=%s is not a working Python 3.12 or 3.13 with venv.\n' "$PYTHON" >&2
        exit 1
    fi
    if try "$root/.venv/bin/python"; then found=$root/.venv/bin/python; return 0; fi
    without_venv=  # a broken .venv says nothing about the machine
    newline='
'
    for name in python3.12 python3.13 python3 python; do
        case $name in
            python3.*) version=${name#python} ;;
            *) version=3.1 ;;
        esac
        directories=$(list_directories "$version")
        saved_ifs=$IFS
        IFS=$newline
        set -f
        for directory in $directories; do
            if try "$directory/$name"; then found=$directory/$name; IFS=$saved_ifs; set +f; return 0; fi
        done
        IFS=$saved_ifs
        set +f
    done
    return 1
}

if ! find_python; then
    if [ -n "$without_venv" ]; then
        package=$("$without_venv" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        cat_message="[setup] error: $without_venv lacks the venv module. Install it, then repeat the command:
    sudo apt-get install -y $package        (Debian, Ubuntu)"
    else
        cat_message="[setup] error: no Python 3.12 or 3.13 found (looked on PATH, in pyenv, uv, conda, /usr/local and /opt).
Install one, then repeat the command:
    sudo apt-get install -y python3 python3-venv      (Debian 13, Ubuntu 24.04)
    sudo dnf install -y python3.12                    (Fedora)
    pyenv install 3.12                                (Debian 12 and others, with pyenv)
    uv python install 3.12                            (anywhere, with uv)
Or name one that lies elsewhere:  PYTHON=/path/to/python3.12 make setup"
    fi
    printf '%s\n' "$cat_message" >&2
    exit 1
fi

if [ "${1:-}" = --find-python ]; then
    printf '%s\n' "$found"
    exit 0
fi
exec "$found" "$root/scripts/bootstrap.py" "$@"
