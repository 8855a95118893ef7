#!/usr/bin/env bash
# Train every model of a family on the same sessions and close with one table; see --help.
set -euo pipefail

cd "$(dirname "$0")/.."

# Sized so that a fresh clone gets from nothing to the table in ten minutes on two cores.
FAMILY=${FAMILY:-}
MODELS=${MODELS:-}
DATASETS=${DATASETS:-experiments/dataset_configs/backimage_120.yaml}
OUTPUT=${OUTPUT:-runs/backimage_$(date +%Y%m%d_%H%M%S)}
BATCH_SIZE=${BATCH_SIZE:-256}
LEARNING_RATE=${LEARNING_RATE:-2e-2}
MAX_EPOCHS=${MAX_EPOCHS:-10}
STEPS_PER_EPOCH=${STEPS_PER_EPOCH:-100}
TIME_BUDGET_MINUTES=${TIME_BUDGET_MINUTES:-1.5}
EXTRA_FLAGS=${EXTRA_FLAGS:-}

usage() {
    cat <<END
Usage: bash experiments/run_all_models_backimage.sh [OPTION VALUE]... [-- FLAG...]

Sets up .venv, makes the demo sessions if absent, trains each model config on the same dataset config, and closes with
one table of the runs. Rates follow a cosine after an epoch of warm-up; epochs are validated on a quarter of the trials,
the table is of all of them. A line "# flags: FLAG..." in a config overrides the settings for that model. A config that fails does not stop the others; the exit code is then 1. Ctrl-C stops the whole.

Each setting is an option or, in capitals, an environment variable; the option wins. Paths are relative to the
repository.

  --family NAME               folder of experiments/model_configs to train, such as full; default: that folder itself
  --models "A B"              names of configs in it, or paths of configs; default: all of them
  --datasets PATH             parent YAML or folder of session YAMLs ($DATASETS)
  --output DIR                where run folders are made (runs/backimage_DATE_TIME)
  --batch_size N              predicted bins in a step ($BATCH_SIZE)
  --learning_rate X           of readouts; the core learns at half of it ($LEARNING_RATE)
  --max_epochs N              ($MAX_EPOCHS)
  --steps_per_epoch N         ($STEPS_PER_EPOCH)
  --time_budget_minutes X     of each model; what is not done by then is left out ($TIME_BUDGET_MINUTES)
  --extra_flags "FLAG..."     more flags of training/train_ddp_multidataset.py; or write them after --

Example: a quick look at two models with the curriculum
  MAX_EPOCHS=2 bash experiments/run_all_models_backimage.sh --models "ln resnet" -- --enable_curriculum
END
}

fail() {
    echo "error: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    --family | --models | --datasets | --output | --batch_size | --learning_rate | --max_epochs | --steps_per_epoch | \
        --time_budget_minutes | --extra_flags)
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "$(echo "${1#--}" | tr '[:lower:]' '[:upper:]')" '%s' "$2"
        shift 2
        ;;
    *) fail "unknown option $1; see --help (flags of the trainer go after --)" ;;
    esac
done
# What is left in "$@" goes to the trainer as it is. EXTRA_FLAGS is split at spaces, as a command line would be.
# shellcheck disable=SC2086
set -- $EXTRA_FLAGS "$@"

configs=()
folder=experiments/model_configs${FAMILY:+/$FAMILY}
for model in ${MODELS:-"$folder"/*.yaml}; do
    case $model in
    */* | *.yaml) ;;
    *) model=$folder/$model.yaml ;;
    esac
    [ -f "$model" ] || fail "$model: no such model config"
    configs+=("$model")
done
[ -e "$DATASETS" ] || fail "$DATASETS: no such dataset config"

. scripts/setup_env.sh
trap 'echo "Interrupted." >&2; exit 130' INT TERM

runs=()
failed=
number=0
for config in "${configs[@]}"; do
    number=$((number + 1))
    name=$(basename "$config" .yaml)
    run=$OUTPUT/$name
    printf '\n[%d/%d] %s\n' "$number" "${#configs[@]}" "$name"
    status=0
    if [ -e "$run" ] && ! [[ " $* " == *" --resume "* ]]; then
        echo "$run holds a run already; choose another --output, or continue it with -- --resume auto" >&2
        status=2
    else
        # A line "# flags: ..." in a config holds what suits that model better than the settings above. The last flag wins.
        own_flags=$(sed -n 's/^# flags: //p' "$config")
        # shellcheck disable=SC2086
        python training/train_ddp_multidataset.py --model_config "$config" --dataset_configs_path "$DATASETS" \
            --experiment_name "$name" --checkpoint_dir "$OUTPUT" --batch_size "$BATCH_SIZE" \
            --learning_rate "$LEARNING_RATE" --max_epochs "$MAX_EPOCHS" --steps_per_epoch "$STEPS_PER_EPOCH" \
            --time_budget_minutes "$TIME_BUDGET_MINUTES" --core_lr_scale 0.5 --lr_scheduler cosine_warmup \
            --warmup_epochs 1 --limit_val_batches 0.25 $own_flags "$@" || status=$?
        [ ! -f "$run/run.json" ] || runs+=("$run") # one that failed on the way has its row as well
    fi
    case $status in
    0) ;;
    130 | 143) exit "$status" ;; # ended by hand
    *)
        echo "$name failed with exit code $status" >&2
        failed="$failed $name"
        ;;
    esac
done

echo
[ ${#runs[@]} -eq 0 ] || neurotwin report "${runs[@]}" || failed="$failed report"
if [ -n "$failed" ]; then
    echo "Failed:$failed" >&2
    exit 1
fi
