# %% [markdown]
# # What eye movements do
#
# When the eyes move, two things happen to a visual neuron: another piece of the picture falls on its receptive field,
# and its gain changes around saccades. A twin can take the two apart, because it can be shown what no animal would
# see. The recording is a simulated one that the twin in `zoo/` was trained on; the figures are of its validation
# trials, which took no part in training.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import neurotwin
from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.data.simulate import simulate_session
from neurotwin.experiments import Ablation, Counterfactual, Events

twin = load_twin(Path(neurotwin.__file__).parents[1] / "zoo/demo/1")  # the zoo of the clone
simulate_session("ada_demo1").save("data/ada_demo1.safetensors")
(spec,) = [spec for spec in twin.sessions if spec.name == "ada_demo1"]
recordings = prepare([spec.config], data_dir="data")
asked = {"sessions": ["ada_demo1"]}

# %% [markdown]
# ## The same recording with another gaze
#
# The session holds the photographs and the eye position, so that the window on the picture can be cut out again with
# the eyes held still (`stabilised`), with half of their movements (`scaled`), or with drift alone
# (`without_saccades`). Behaviour stays as it was. The scores are against what was really recorded: the worse, the
# more a unit depends on the movement.

# %%
gaze = Counterfactual().run(twin, recordings, **asked).tables["units"]
names = ["recorded", "scaled", "without_saccades", "stabilised"]
scores = [gaze[f"score.{name}"] for name in names]
figure, ax = plt.subplots(figsize=(6, 3))
ax.boxplot(scores, tick_labels=[name.replace("_", " ") for name in names], showfliers=False)
ax.axhline(0, color="gray", linewidth=0.8)
ax.set(ylabel="bits per spike")
for name, score in zip(names, scores, strict=True):
    print(f"{name:17} {np.nanmedian(score):6.2f} bits per spike, median of {len(score)} units")

# %% [markdown]
# ## Around saccades
#
# The mean response of all units around saccades: as recorded, as predicted, and as predicted with behaviour held at
# its median. What is left without behaviour comes in through the stimulus; the rest is what the twin learned of the
# gain.

# %%
around = Events(n_bootstraps=100).run(twin, recordings, **asked)
figure, ax = plt.subplots(figsize=(6, 3))
for name, label in (("data", "recorded"), ("twin", "twin"), ("without_behavior", "twin without behaviour")):
    ax.plot(around.arrays["lag_s"], around.arrays[f"{name}.ada_demo1"].mean(axis=1), label=label)
ax.set(xlabel="s after a saccade", ylabel="Hz, mean over units")
ax.legend(frameon=False)
print(f"{around.settings['notes']['events']['ada_demo1']} saccades in the validation trials")

# %% [markdown]
# ## What behaviour adds
#
# The score of the whole twin less that with one variable held at its median. Intervals are over bootstraps of trials;
# a variable whose interval holds 0 may add nothing to that unit.

# %%
added = Ablation(n_bootstraps=100).run(twin, recordings, **asked).tables["units"]
for name in ("eyevel", "pupil"):
    gain, low = added[f"{name}.median.gain"], added[f"{name}.median.gain_low"]
    print(
        f"{name:7} adds {np.nanmedian(gain):.2f} bits per spike; intervals above 0: {np.mean(low > 0):.0%} of the units"
    )
