# %% [markdown]
# # What eye movements do
#
# The same recording with another gaze: the window on the picture is cut again at every bin, with the gaze held still.
# Where the movements of the eye drive a unit, the score falls. Run [training](training.md) first.

# %%
import numpy as np

from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.experiments import Counterfactual

twin = load_twin("checkpoints/gallery")
recordings = prepare([spec.config for spec in twin.sessions])
result = Counterfactual(changes=("stabilised",)).run(twin, recordings)

# %% [markdown]
# `r.stabilised` is the correlation of a unit's predicted rates with and without the movements of the eye.

# %%
table = result.tables["units"]
print(f"median correlation: {np.nanmedian(table['r.stabilised']):.2f}")
print(f"median loss of score: {np.nanmedian(table['gain.stabilised']):.3f}")
