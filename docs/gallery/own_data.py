# %% [markdown]
# # Own data
#
# A session is one recording on one clock: for each bin the frame that was shown and the response of each unit. Here
# the movie is noise, and two units count spikes that follow the brightness of a small patch.

# %%
import numpy as np

from neurotwin import Session

rng = np.random.default_rng(0)
movie = rng.integers(0, 256, (1200, 16, 16), dtype=np.uint8)
brightness = movie[:, 6:10, 6:10].mean((1, 2)) / 255
counts = rng.poisson(0.5 * brightness[:, None], (1200, 2))

# %% [markdown]
# `Session` checks that the arrays agree. Whole trials go to training, validation or test.

# %%
session = Session(name="cat_0501", stimulus=movie, responses=counts, bin_rate=60.0, trial=np.arange(1200) // 60)
session.save("data/cat_0501.safetensors")

# %% [markdown]
# The saved file is memory-mapped when it is opened.

# %%
again = Session.load("data/cat_0501.safetensors")
print(f"{again.name}: {again.n_units} units, {again.duration:.0f} s at {again.bin_rate:.0f} Hz")
