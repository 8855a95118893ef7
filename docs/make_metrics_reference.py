"""Write docs/metrics.md from the registered metrics: run it after every change of neurotwin/metrics/definitions.py."""

from pathlib import Path

from neurotwin.metrics import metrics_reference

__all__ = ["render"]

PATH = Path(__file__).with_name("metrics.md")

INTRODUCTION = """\
# Metrics

*Generated from `neurotwin/metrics/definitions.py` by `python docs/make_metrics_reference.py`; do not edit.*

These are the columns of `units.csv` that hold figures, in their order. There is one row for each unit. How to read them
is explained in [reading results](reading_results.md), and which likelihood gives which of them in
[likelihoods](likelihoods.md).

Letters: y is the response of a bin, e its exposure (the number of presentations that the response is summed over,
usually 1), λ the predicted rate per bin and presentation, m is 1 where a response is valid and 0 elsewhere, t is a
frame of a repeated stimulus, r a repeat and R their number. A bar is a mean. Sums run over the bins that are
evaluated. A figure is NaN where it is not defined.

"""


def render() -> str:
    """The text of the page."""
    return INTRODUCTION + metrics_reference()


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
