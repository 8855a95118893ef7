# %% [markdown]
# # Receptive fields against the truth
#
# What in the stimulus does a unit respond to? A twin can be asked, because it has gradients. The demo sessions are
# simulated, so that the answer can be held against the filters that really made the spikes. The twin is the one that
# comes with the repository in `zoo/` (see [sharing](../sharing.md)).

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import neurotwin
from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.data.simulate import draw_units, simulate_session
from neurotwin.experiments import ReceptiveField

twin = load_twin(Path(neurotwin.__file__).parents[1] / "zoo/demo/1")  # the zoo of the clone
simulate_session("ada_demo1").save("data/ada_demo1.safetensors")
(spec,) = [spec for spec in twin.sessions if spec.name == "ada_demo1"]
recordings = prepare([spec.config], data_dir="data")

# %% [markdown]
# The rate of each unit is linearised around 96 pieces of the stimulus. The directions in which its gradients lie are
# the filters that it depends on, two for a complex cell.

# %%
result = ReceptiveField(n_movies=96, recorded=False).run(twin, recordings, sessions=["ada_demo1"])
table, truth = result.tables["units"], draw_units("ada_demo1")

# %% [markdown]
# ## Place and orientation
#
# `center_x_px` and `center_y_px` count from the middle of the frame. The orientation is that of the stripes'
# variation, and repeats after 180 degrees.

# %%
found = np.stack([table["center_x_px"], table["center_y_px"]], axis=1)
distance = np.linalg.norm(found - truth.center, axis=1)
true_orientation = np.rad2deg(truth.orientation) % 180
apart = np.abs((table["orientation_deg"] - true_orientation + 90) % 180 - 90)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
left.scatter(truth.center[:, 0], found[:, 0], s=16, label="x")
left.scatter(truth.center[:, 1], found[:, 1], s=16, label="y")
left.plot([-5, 5], [-5, 5], color="gray", linewidth=0.8)
left.set(xlabel="true centre, pixels", ylabel="found")
left.legend(frameon=False)
right.scatter(true_orientation, table["orientation_deg"] % 180, s=16)
right.plot([0, 180], [0, 180], color="gray", linewidth=0.8)
right.set(xlabel="true orientation, degrees", ylabel="found")
figure.tight_layout()
print(f"centre: {np.median(distance):.1f} pixels off, median of {len(distance)} units")
print(f"orientation: {np.median(apart):.0f} degrees off, within 15 degrees in {np.mean(apart < 15):.0%} of the units")

# %% [markdown]
# ## Filters
#
# The strongest filter of four units at the lag where it is largest, above the true Gabor. The sign is free, and so is
# the phase of a complex cell. What a trained twin gets wrong, and how the overlap grows with the number of movies, is
# in [experiments](../experiments.md).

# %%
filters = result.arrays["filters.ada_demo1"][:, 0, :, 0]  # (U, L, H, W), oldest frame first
even = truth.spatial_filters()[0]  # (U, H, W)
figure, axes = plt.subplots(2, 4, figsize=(8, 4))
for column, unit in enumerate(np.argsort(apart)[:4]):
    lag = np.square(filters[unit]).sum((1, 2)).argmax()
    for ax, image, name in zip(axes[:, column], (filters[unit, lag], even[unit]), ("found", "true"), strict=True):
        ax.imshow(image, cmap="RdBu_r", vmin=-abs(image).max(), vmax=abs(image).max())
        ax.set(title=f"unit {spec.unit_ids[unit]}, {name}", xticks=[], yticks=[])
