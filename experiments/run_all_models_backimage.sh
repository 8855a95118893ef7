#!/usr/bin/env bash
# Train every model of a family on the same sessions and close with one table; see --help.
set -euo pipefail

cd "$(dirname "$0")/.."

# Sized so that a fresh clone gets from nothing to the table in ten minutes on two cores.
FAMILY=${FAMILY:-}
MODELS=${MODELS:-}
DATASETS=${DATASETS:-experiments/dataset_configs/backimage_120.yaml}
OUTPUT=${OUTPUT:-runs/backimage_$(date +%Y%m%d_%H%M%S)}
BATCH_SIZE=${BATCH_SIZE:-}
LEARNING_RATE=${LEARNING_RATE:-}
MAX_EPOCHS=${MAX_EPOCHS:-}
STEPS_PER_EPOCH=${STEPS_PER_EPOCH:-}
TIME_BUDGET_MINUTES=${TIME_BUDGET_MINUTES:-1.5}
EXTRA_FLAGS=${EXTRA_FLAGS:-}

usage() {
    cat <<END
Usage: bash experiments/run_all_models_backimage.sh [OPTION VALUE]... [-- FLAG...]

Sets up .venv, makes the demo sessions if absent, trains each model config on the same dataset config, and closes with
one table of the runs. What is not set here is as the section "training" of the model config says,
and else as stands in brackets. Learning rates fall to 0 within the time budget, and weights are averaged over steps,
unless a model config says otherwise. Epochs are validated on a quarter of the trials, the table is of all of them. A
config that fails does not stop the others; the exit code is then 1. Ctrl-C stops the whole.

Each setting is an option or, in capitals, an environment variable; the option wins. Paths are relative to the
repository.

  --family NAME               folder of experiments/model_configs to train, such as full; default: that folder itself
  --models "A B"              names of configs in it, or paths of configs; default: all of them
  --datasets PATH             parent YAML or folder of session YAMLs ($DATASETS)
  --output DIR                where run folders are made (runs/backimage_DATE_TIME)
  --batch_size N              predicted bins in a step (256)
  --learning_rate X           of readouts; the core learns at half of it (2e-2)
  --max_epochs N              (10)
  --steps_per_epoch N         (100)
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

# What a model config does not say in its section training, and the caller has not set.
DEFAULTS="batch_size=256 learning_rate=2e-2 max_epochs=10 steps_per_epoch=100 core_lr_scale=0.5 lr_scheduler=anneal \
warmup_epochs=1 ema=0.99 limit_val_batches=0.25"

# The settings of a model config as flags: those of the caller, and of DEFAULTS those that the config does not say.
settings() {
    local pair said
    [ -z "$BATCH_SIZE" ] || echo "--batch_size $BATCH_SIZE"
    [ -z "$LEARNING_RATE" ] || echo "--learning_rate $LEARNING_RATE"
    [ -z "$MAX_EPOCHS" ] || echo "--max_epochs $MAX_EPOCHS"
    [ -z "$STEPS_PER_EPOCH" ] || echo "--steps_per_epoch $STEPS_PER_EPOCH"
    said="${BATCH_SIZE:+batch_size} ${LEARNING_RATE:+learning_rate} ${MAX_EPOCHS:+max_epochs} $(
        python -c 'import sys, yaml; print(*(yaml.safe_load(open(sys.argv[1])).get("training") or {}))' "$1" 2>/dev/null
    ) ${STEPS_PER_EPOCH:+steps_per_epoch}"
    for pair in $DEFAULTS; do
        [[ " $said " == *" ${pair%%=*} "* ]] || echo "--${pair%%=*} ${pair#*=}"
    done
}

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
        # shellcheck disable=SC2046
        python training/train_ddp_multidataset.py --model_config "$config" --dataset_configs_path "$DATASETS" \
            --experiment_name "$name" --checkpoint_dir "$OUTPUT" --time_budget_minutes "$TIME_BUDGET_MINUTES" \
            $(settings "$config") "$@" || status=$?
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
