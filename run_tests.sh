#!/usr/bin/env bash
# Set up the environment if need be, then run the tests, one process a core. Arguments go to pytest:
# bash run_tests.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup_env.sh
export OMP_NUM_THREADS=1 # the processes share the cores
exec python -m pytest -n auto "$@"
