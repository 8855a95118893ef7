# %% [markdown]
# # Own data
#
# Two arrays are enough to begin: the movie that was shown, and the responses of the units in the same time bins. Here
# the movie is noise, and three units count spikes that follow the brightness of a small patch, 3 frames later.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from neurotwin import Session, load_dataset_configs
from neurotwin.data.prepare import prepare

rng = np.random.default_rng(0)
n_bins, delay = 6000, 3
movie = rng.integers(0, 256, (n_bins, 16, 16), dtype=np.uint8)  # (T, H, W): the frame in each bin
patch = movie[:, 6:10, 6:10].mean((1, 2)) / 255
drive = np.roll(np.clip(patch - 0.45, 0, None), delay)
counts = rng.poisson(drive[:, None] * [2.0, 4.0, 8.0])  # (T, U): the spikes of each unit in each bin

# %% [markdown]
# ## A session
#
# `Session` checks that the arrays agree with one another. `trial` says which trial each bin belongs to: whole trials
# go to training, validation or test. The saved file is memory-mapped when it is opened.

# %%
session = Session(name="cat_0501", stimulus=movie, responses=counts, bin_rate=60.0, trial=np.arange(n_bins) // 60)
session.save("data/cat_0501.safetensors")
again = Session.load("data/cat_0501.safetensors")
print(f"{again.name}: {again.n_units} units, {again.duration:.0f} s at {again.bin_rate:.0f} Hz")

# %% [markdown]
# ## What a model sees of it
#
# The dataset file says how the recording is used: a prediction sees the frame of its bin and the 7 before it, pixels
# are scaled, and a fifth of the trials is for validation. Preparing it shows what is left for each part.

# %%
Path("cat_0501.yaml").write_text("""
data_dir: data
keys_lags: {stim: [0..7]}
transforms:
  stim: {source: stim, ops: [pixelnorm: {}]}
datafilters:
  dfs: {ops: [valid_nlags: {n_lags: 7}]}
train_val_split: 0.8
""")
(prepared,) = prepare(load_dataset_configs("cat_0501.yaml"))
for index, part in enumerate(("train", "val")):
    bins = prepared.split == index
    print(f"{part}: {bins.sum()} bins, {np.asarray(prepared.mask)[bins].mean():.0%} of the responses are valid")

# %% [markdown]
# The first 7 bins of each trial of 60 are not valid: a prediction there would look back into the trial before.
#
# ## Is the clock right?
#
# Before you train, check that the units respond to the stimulus at all, and after it. The average of the frames
# before each spike shows the patch, and that the units answer 3 bins late. (`neurotwin audit` does this for every
# unit.)

# %%
frames = movie.astype(float) - 127
averages = np.stack([(np.roll(frames, lag, axis=0) * counts[:, 2, None, None]).mean(0) for lag in range(6)])
figure, axes = plt.subplots(1, 6, figsize=(9, 1.9))
for lag, (ax, average) in enumerate(zip(axes, averages, strict=True)):
    ax.imshow(average, cmap="RdBu_r", vmin=-abs(averages).max(), vmax=abs(averages).max())
    ax.set(title=f"{lag} bins before", xticks=[], yticks=[])
strength = averages[:, 6:10, 6:10].mean((1, 2))
print("the patch is brightest", strength.argmax(), "bins before a spike")
