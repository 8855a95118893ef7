#!/usr/bin/env bash
# Train and show the result: bash train.sh. What is written after it goes to the trainer:
# bash train.sh --max_epochs 50 --set convnet.params.channels=[32,64]
set -euo pipefail
cd "$(dirname "$0")"

# As set here, training takes a few minutes on two cores: good for a first look, not for a final model.
neurotwin train --model_config model.yaml --dataset_configs_path datasets.yaml \
    --batch_size 256 --learning_rate 2e-2 --core_lr_scale 0.5 --lr_scheduler cosine_warmup --warmup_epochs 1 \
    --max_epochs 5 --steps_per_epoch 100 --experiment_name first --resume auto "$@"
neurotwin report checkpoints/first --html report.html
