# %% [markdown]
# # Training
#
# A short simulated session of model V1 units, a dataset file, a model file, and one call. The other examples use the
# model that this one writes; run it first, in the same folder. A model for research takes thousands of steps; see
# [training](../training_guide.md).

# %%
from pathlib import Path

from neurotwin.data.simulate import simulate_session
from training.train_ddp_multidataset import main

counts = {"backimage": 8, "gaborium": 0, "fixrsvp": 4}
simulate_session("ada_demo1", n_trials=counts).save("data/ada_demo1.safetensors")

# %% [markdown]
# What a prediction sees: the last 8 frames at 120 Hz.

# %%
Path("ada_demo1.yaml").write_text("""
data_dir: data
sampling: {source_rate: 240, target_rate: 120}
keys_lags: {stim: [0..7]}
transforms:
  stim: {source: stim, ops: [pixelnorm: {}]}
datafilters:
  dfs: {ops: [valid_nlags: {n_lags: 8}]}
train_val_split: 0.7
""")
Path("model.yaml").write_text("""
frontend: {type: learnable_temporal, params: {kernel_size: 8, num_channels: 2}}
convnet: {type: vanilla, params: {channels: [8], block_configs: [{conv_params: {kernel_size: [1, 9, 9]}}]}}
readout: {type: gaussian}
training: {learning_rate: 0.01, batch_size: 32}
""")

# %% [markdown]
# The flags are those of `neurotwin train`. The run is written to `checkpoints/gallery`.

# %%
flags = "--model_config model.yaml --dataset_configs_path ada_demo1.yaml --max_epochs 1 --steps_per_epoch 30"
code = main([*flags.split(), "--experiment_name", "gallery"])
print("finished" if code == 0 else f"ended with {code}")
