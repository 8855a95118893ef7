#!/usr/bin/env bash
# Train and show the result: bash train.sh. What is written after it goes to the trainer:
# bash train.sh --max_epochs 50 --set convnet.params.channels=[32,64]
set -euo pipefail
cd "$(dirname "$0")"

# How it is trained stands in the section training of model.yaml. A tenth of the usual steps in an epoch is good for a first
# look, in a few minutes on two cores; for a model to work with, leave --steps_per_epoch out.
neurotwin train --model_config model.yaml --dataset_configs_path datasets.yaml --steps_per_epoch 40 \
    --experiment_name first --resume auto "$@"
neurotwin report checkpoints/first --html report.html
