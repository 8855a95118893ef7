#!/usr/bin/env bash
# Train every model of a family on the same sessions and close with one table: sets up .venv, then does what
# `neurotwin run-all` does, with the same options and environment variables (see --help). Demo sessions are made if
# absent. Paths are relative to the repository.
#
#   MAX_EPOCHS=2 bash experiments/run_all_models_backimage.sh --models "ln resnet" -- --enable_curriculum
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/setup_env.sh
exec neurotwin run-all "$@"
