#!/usr/bin/env bash
# Run the tests with other versions of the dependencies, in an environment of their own (.venv-VERSIONS):
#
#   bash scripts/test_versions.sh lowest [PYTEST ARGUMENT...]    the lowest that pyproject.toml allows
#   bash scripts/test_versions.sh newest [...]                   the newest that the package index has
#   bash scripts/test_versions.sh pinned [...]                   those of constraints.txt, as in .venv
#
# PYTHON=python3.13 chooses the interpreter, whose version is then part of the folder's name.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=${1:-}
case $versions in
lowest) constraints=(-c scripts/constraints-lowest.txt) ;;
newest) constraints=(--upgrade --upgrade-strategy eager) ;; # also what an earlier call installed
pinned) constraints=(-c constraints.txt) ;;
*) echo "usage: bash scripts/test_versions.sh lowest|newest|pinned [PYTEST ARGUMENT...]" >&2 && exit 2 ;;
esac
shift

python=${PYTHON:-python3}
folder=.venv-$versions-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip --require-virtualenv install -q --no-input --disable-pip-version-check \
    "${constraints[@]}" -e ".[dev]"
"$folder/bin/python" -m pip --disable-pip-version-check list --format freeze >"$folder/versions.txt"
# Warnings are errors with the pinned versions only: others warn of one another in ways that nobody here can mend.
[ "$versions" = pinned ] || set -- -W default "$@"
OMP_NUM_THREADS=1 exec "$folder/bin/python" -m pytest "$@"
