#!/usr/bin/env bash
# Set up .venv with the pinned packages of constraints.txt and this project, editable. Takes a moment when already done.
#
#   bash scripts/setup_env.sh      set up only
#   . scripts/setup_env.sh         from a bash script: set up, then put .venv first on PATH
#
# PYTHON=/path/to/python chooses the interpreter a new .venv is made from; otherwise the first Python of 3.11 or newer
# on PATH. Delete .venv to start over.

if [ "${BASH_SOURCE[0]}" != "$0" ]; then # sourced: work in a process of its own, so that no option or variable leaks
    bash "${BASH_SOURCE[0]}" || return 1
    VIRTUAL_ENV="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv"
    PATH="$VIRTUAL_ENV/bin:$PATH"
    export VIRTUAL_ENV PATH
    return 0
fi

set -euo pipefail
cd "$(dirname "$0")/.."
state=.venv/setup-state

# What a finished .venv was made from, word for word. The folder counts: scripts in .venv hold its absolute path.
wanted() { echo "made in $PWD" && cat pyproject.toml constraints.txt; }

is_done() { [ -x .venv/bin/python ] && wanted | cmp -s - "$state"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        elif [ "$candidate" = "${PYTHON:-}" ]; then
            echo "PYTHON=$PYTHON cannot be used: it must be Python 3.11 or newer, with its venv module" >&2
            return 1
        fi
    done
    echo "no Python 3.11 or newer with its venv module on PATH; install one, or name it: PYTHON=/path/to/python" >&2
    return 1
}

set_up() {
    # Brought up to date in place, unless it was cut off (half a package may be there), was made in another folder or is
    # broken: then from nothing.
    if [ "$(head -n 1 "$state" 2>/dev/null || echo "made in $PWD")" = "made in $PWD" ] &&
        .venv/bin/python -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' >/dev/null 2>&1; then
        echo "Bringing .venv up to date with pyproject.toml and constraints.txt." >&2
        echo unfinished >"$state"
    else
        echo "Setting up .venv with $("$1" --version): a minute or two, most of it downloads." >&2
        rm -rf .venv.old
        if [ -e .venv ]; then mv .venv .venv.old; fi # renamed at once: nobody ever sees half of it
        mkdir .venv
        echo unfinished >"$state"
        "$1" -m venv .venv
        rm -rf .venv.old
    fi
    # The pinned setuptools builds the project: an isolated build would fetch one of its own, unpinned.
    pip_install setuptools
    pip_install --no-build-isolation -e ".[dev]"
    wanted >"$state.new"
    mv "$state.new" "$state"
    echo "Set up." >&2
}

pip_install() { # --require-virtualenv: whatever happens to .venv, pip never touches another Python
    .venv/bin/python -m pip --require-virtualenv install -qq --no-input --disable-pip-version-check \
        -c constraints.txt "$@"
}

if ! is_done; then
    python="$(find_python)"
    (
        # The system drops this lock when its holder ends, however it ends. Python takes it: macOS has no flock command.
        "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
        is_done || set_up "$python"
    ) 9<>scripts/setup_env.sh
fi
