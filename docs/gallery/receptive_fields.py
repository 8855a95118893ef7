# %% [markdown]
# # Receptive fields against the truth
#
# The simulated units are known, so that what the twin learned can be held against them. Run [training](training.md)
# first. After 30 steps the overlap is small; see [experiments](../experiments.md) for what a trained twin reaches.

# %%
import numpy as np

from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.data.simulate import draw_units
from neurotwin.experiments import ReceptiveField
from neurotwin.experiments.maps import overlap

twin = load_twin("checkpoints/gallery")
recordings = prepare([spec.config for spec in twin.sessions])
result = ReceptiveField(n_movies=16).run(twin, recordings)
filters = result.arrays["filters.ada_demo1"][:, :, :, 0]  # (U, 2, L, H, W), oldest frame first

# %% [markdown]
# The true filter of a unit covers 0.15 s; the model sees the last frames of it. An overlap of 1 means that the true
# filter lies in the subspace found, one of 0 that it is orthogonal to it.

# %%
truth = draw_units("ada_demo1").filters(bin_rate=120.0)[:, -filters.shape[2] :]  # (U, L, H, W)
overlaps = np.array([overlap(found, true[None]) for found, true in zip(filters, truth, strict=True)])
print(f"median overlap with the true filter: {np.median(overlaps):.2f}")
