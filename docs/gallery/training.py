# %% [markdown]
# # Training
#
# A simulated recording of model V1 units, a dataset file, a model file, and one call. The next example reads the run
# that this one writes. It is small on purpose; a model for research takes thousands of steps (see
# [training](../training_guide.md)).

# %%
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from neurotwin.data.simulate import simulate_session
from training.train_ddp_multidataset import main

trials = {"backimage": 60, "gaborium": 0, "fixrsvp": 10}  # free viewing of photographs, and a clip that is repeated
simulate_session("ada_demo1", n_trials=trials).save("data/ada_demo1.safetensors")

# %% [markdown]
# The recording has 240 bins a second and is modelled at 120. A prediction sees the last 16 frames, and the diameter
# of the pupil, which changes the gain of these units.

# %%
Path("ada_demo1.yaml").write_text("""
data_dir: data
sampling: {source_rate: 240, target_rate: 120}
keys_lags: {stim: [0..15]}
transforms:
  stim: {source: stim, ops: [pixelnorm: {}]}
  pupil: {source: pupil, ops: [maxnorm: {}], expose_as: behavior}
datafilters:
  dfs: {ops: [valid_nlags: {n_lags: 15}]}
train_val_split: 0.8
""")
Path("model.yaml").write_text("""
frontend: {type: learnable_temporal, params: {kernel_size: 16, num_channels: 4, init_type: gaussian_derivatives}}
convnet:
  type: vanilla
  params:
    channels: [16]
    block_configs:
      - conv_params: {kernel_size: [1, 9, 9], padding: [0, 4, 4], stride: [1, 2, 2]}
        norm_type: batch
        act_type: splitrelu
modulator: {type: concat, params: {encoder_params: {dims: [8]}}}
readout: {type: gaussian}
training: {learning_rate: 0.02, core_lr_scale: 0.5, batch_size: 256, lr_scheduler: anneal, warmup_epochs: 1, ema: 0.98}
""")

# %% [markdown]
# The flags are those of `neurotwin train`. An epoch is 30 steps here. The run is written to `checkpoints/gallery`.

# %%
flags = "--model_config model.yaml --dataset_configs_path ada_demo1.yaml --max_epochs 5 --steps_per_epoch 30"
code = main([*flags.split(), "--experiment_name", "gallery"])
print("finished" if code == 0 else f"ended with {code}")

# %% [markdown]
# ## Did it learn?
#
# `metrics.csv` has a row for each epoch. Bits per spike (BPS) say how much better the model predicts than the mean
# rate of each unit. At 0 the model knows nothing but that mean.

# %%
with open("checkpoints/gallery/metrics.csv", newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["val_bps"]]
bps = np.array([float(row["val_bps"]) for row in rows])
figure, ax = plt.subplots(figsize=(5, 3))
ax.plot(np.arange(1, len(bps) + 1), bps, marker="o")
ax.axhline(0, color="gray", linewidth=0.8)
ax.set(xlabel="epoch of 30 steps", ylabel="bits per spike on validation trials")
print(f"after {len(bps)} epochs: {bps[-1]:.2f} bits per spike")
