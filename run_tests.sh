#!/usr/bin/env bash
# Set up the environment if need be, then run the tests. Arguments go to pytest: bash run_tests.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup_env.sh
exec python -m pytest "$@"
