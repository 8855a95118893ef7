# %% [markdown]
# # Exciting stimuli
#
# Which image of a given contrast excites a unit most? The twin finds it by gradient ascent. In an experiment you
# would now show it to the animal; here it is shown to the simulator that made the recording, beside photographs of
# equal contrast.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import neurotwin
from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.data.simulate import draw_units, simulate_session
from neurotwin.experiments import ExcitingStimulus

twin = load_twin(Path(neurotwin.__file__).parents[1] / "zoo/demo/1")  # the zoo of the clone
simulate_session("ada_demo1").save("data/ada_demo1.safetensors")
(spec,) = [spec for spec in twin.sessions if spec.name == "ada_demo1"]
recordings = prepare([spec.config], data_dir="data")

# %% [markdown]
# The result's folder has every image as an 8-bit PNG file, and a manifest that says how large and how long to show
# it. The recording is needed for the behaviour: the pupil and the eyes are held at their median.

# %%
experiment = ExcitingStimulus(n_steps=40, n_starts=1, contrast=0.1)
result = experiment.run(twin, recordings, sessions=["ada_demo1"], folder="exciting")
table, images = result.tables["units"], result.arrays["stimuli"][:, 0]  # (U, H, W) uint8
figure, axes = plt.subplots(2, 4, figsize=(8, 4.2))
for ax, image, unit, rate in zip(axes.flat, images, table["unit_id"], table["rate_hz"], strict=False):
    ax.imshow(image, cmap="gray", vmin=60, vmax=194)
    ax.set(title=f"unit {unit}: {rate:.0f} Hz", xticks=[], yticks=[])

# %% [markdown]
# ## Shown to the simulator
#
# Each image is shown for 0.1 s after grey, and so are 300 cut-outs of the photographs of the recording, brought to
# the same contrast. A unit counts as won if the true rate to its image is larger than to every cut-out.

# %%
units, grey, seconds = draw_units("ada_demo1"), 127, 0.1
first, length = 40, round(seconds * 240)  # bins of grey and of the image, at 240 Hz


def true_rates(image: np.ndarray) -> np.ndarray:
    """The mean true rate of every unit while an image is shown, Hz, (U,)."""
    movie = np.full((first + length, *image.shape), grey, np.uint8)
    movie[first:] = np.clip(np.rint(image), 0, 255)
    return units.rate(movie)[first:].mean(axis=0)


session = neurotwin.Session.load("data/ada_demo1.safetensors")
shown = np.flatnonzero(np.asarray(session.stimulus_type) == "backimage")
chosen = np.random.default_rng(0).choice(shown, 300, replace=False)
patches = np.stack([session.stimulus[index] for index in np.sort(chosen)]).reshape(-1, *images.shape[1:]) - float(grey)
patches = patches[patches.std(axis=(1, 2)) > 5]
patches *= experiment.contrast * grey / np.sqrt(np.square(patches).mean((1, 2), keepdims=True))
own = np.array([true_rates(image)[unit] for unit, image in enumerate(images)])
natural = np.stack([true_rates(grey + patch) for patch in patches]).max(axis=0)
figure, ax = plt.subplots(figsize=(4.5, 4))
ax.scatter(natural, own, s=16)
ax.plot([0, own.max()], [0, own.max()], color="gray", linewidth=0.8)
ax.set(xlabel="true rate to the best photograph, Hz", ylabel="true rate to the image found, Hz")
print(f"won by {np.mean(own > natural):.0%} of {len(own)} units; median ratio {np.median(own / natural):.2f}")
