# %% [markdown]
# # Reading a report
#
# The run that [training](training.md) wrote, as a table, as figures and as a page. Run that example first, in the
# same folder. What the columns mean is in [reading results](../reading_results.md), the formulas in
# [metrics](../metrics.md).

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from neurotwin import load_twin
from neurotwin.analysis.report import load_run, report_rows, text_table
from neurotwin.analysis.report_data import gather
from neurotwin.analysis.report_page import html_page

run = load_run("checkpoints/gallery")
print(text_table(report_rows([run])))

# %% [markdown]
# ## How good can it be?
#
# Responses scatter from trial to trial, so that no model predicts them all. The recording is simulated, and its true
# rate is known: `oracle_bps` is what that rate reaches. Each dot is a unit. A dot on the line would have nothing left
# to learn, one below 0 is predicted worse than by its mean.

# %%
units = run.table
figure, ax = plt.subplots(figsize=(4.5, 4))
ax.scatter(units["oracle_bps"], units["bps"], s=20)
limit = max(units["oracle_bps"].max(), 0.1)
ax.plot([0, limit], [0, limit], color="gray", linewidth=0.8)
ax.axhline(0, color="gray", linewidth=0.8)
ax.set(xlabel="bits per spike of the true rate", ylabel="bits per spike of the model")
best = int(np.nanargmax(units["bps"]))
print(
    f"best unit: {units['unit_id'][best]}, {units['bps'][best]:.2f} of {units['oracle_bps'][best]:.2f} bits per spike"
)
print(f"units below 0: {(units['bps'] < 0).sum()} of {len(units)}")

# %% [markdown]
# ## Look at the prediction
#
# Two seconds of validation: the spikes of the best unit in 25 ms, and the rate that the model predicts for them.

# %%
twin = load_twin("checkpoints/gallery")
prediction = twin.predict("ada_demo1", part="val")
bins, rate = 3, prediction.bin_rate
start = np.flatnonzero(~np.isnan(prediction.rates[:, best]))[0]
window = slice(start, start + 80 * bins)
observed = prediction.responses[window, best].reshape(-1, bins).mean(1) * rate
predicted = np.nanmean(prediction.rates[window, best].reshape(-1, bins), axis=1) * rate
figure, ax = plt.subplots(figsize=(7, 2.4))
ax.step(np.arange(len(observed)) * bins / rate, observed, color="0.6", label="recorded")
ax.plot(np.arange(len(observed)) * bins / rate, predicted, label="predicted")
ax.set(xlabel="s", ylabel="spikes/s")
ax.legend(frameon=False)

# %% [markdown]
# ## The page
#
# `neurotwin report checkpoints/gallery --html report.html` writes all of this for every unit as one page, which needs
# no network: sentences that say how good the model is, traces, and a table that can be sorted and filtered. The same
# from Python:

# %%
Path("report.html").write_text(html_page([run], title="Gallery", data=[gather(run)]), encoding="utf-8")
print(f"report.html: {Path('report.html').stat().st_size / 1e6:.1f} MB")
