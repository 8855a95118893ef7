# %% [markdown]
# # Exciting stimuli
#
# The image of fixed contrast that drives a unit most, by gradient ascent through the twin. Run
# [training](training.md) first.

# %%
from neurotwin import load_twin
from neurotwin.data.prepare import prepare
from neurotwin.experiments import ExcitingStimulus

twin = load_twin("checkpoints/gallery")
recordings = prepare([spec.config for spec in twin.sessions])
experiment = ExcitingStimulus(units=(2, 5), n_steps=10, n_starts=1)
result = experiment.run(twin, recordings, folder="exciting")

# %% [markdown]
# The folder has the images in 8 bits and a manifest that says how to show them. Rates are those of the rounded images.

# %%
table = result.tables["units"]
for unit, rate in zip(table["unit_id"], table["rate_hz"], strict=True):
    print(f"unit {unit}: {rate:.1f} Hz")
