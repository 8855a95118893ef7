# %% [markdown]
# # Reading a report
#
# The table of a run has one row a unit. Run [training](training.md) first. What the columns mean is in
# [reading results](../reading_results.md), the formulas in [metrics](../metrics.md).

# %%
from pathlib import Path

from neurotwin.analysis.report import load_run, report_rows, text_table
from neurotwin.analysis.report_page import html_page

run = load_run("checkpoints/gallery")
print(text_table(report_rows([run])))

# %% [markdown]
# The same as one HTML page that needs no network, as `neurotwin report checkpoints/gallery --html report.html` writes.

# %%
Path("report.html").write_text(html_page([run], title="Gallery"), encoding="utf-8")
