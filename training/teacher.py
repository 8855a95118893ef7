"""Learning from the rates of a trained model: what a teacher expects in every bin, and the loss about it.

The teacher predicts every stimulus once, before training, each with its own lags, behaviour and scaling. The stimuli
may have no valid responses: such clips are learned from by the teacher's rates alone.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neurotwin.analysis.parity import check_parts, rates_in_bins
from neurotwin.clip import Sample, Target
from neurotwin.data.prepare import Prepared
from neurotwin.data.session import SPLITS
from neurotwin.likelihoods import Likelihood
from neurotwin.models.storage import load_twin

__all__ = ["Teacher", "learned_pairs", "loss_of", "taught"]

logger = logging.getLogger(__name__)


class Teacher:
    """A trained model, or an ensemble, that another model learns from.

    Parameters
    ----------
    path
        Its file or run folder.

    Raises
    ------
    CheckpointError
        If it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.twin = path, load_twin(path)
        self._rates: list[np.ndarray] | None = None

    def rates(self, sessions: Sequence[Prepared]) -> list[np.ndarray]:
        """What it expects in the bins of prepared sessions, (T, U) float32 each; NaN in validation and test.

        Raises
        ------
        EvaluationError
            If it does not know a session or its units, or was trained on trials that are validated on here.
        """
        if self._rates is None:
            self._rates = []
            for prepared in sessions:
                logger.info("session %s: the rates of %s", prepared.name, self.path)
                check_parts(self.twin, prepared)
                rates = rates_in_bins(self.twin, prepared)
                rates[np.asarray(prepared.split) > SPLITS.index("train")] = np.nan
                self._rates.append(rates)
        return self._rates


def taught(sample: Sample, sessions: Sequence[Prepared], expected: Sequence[np.ndarray]) -> Sample:
    """The sample with what a teacher expects in the bins that it predicts; NaN beyond the end of a run."""
    prepared, starts = sessions[sample.session], sample.clip.bins.numpy()
    bins = starts[:, None] + np.arange(sample.clip.length)
    rates = expected[sample.session][np.minimum(bins, prepared.n_bins - 1)]
    rates = np.where((bins < np.asarray(prepared.run_stop)[starts][:, None])[..., None], rates, np.float32("nan"))
    target = sample.target
    return Sample(sample.clip, Target(target.responses, target.mask, target.exposure, torch.from_numpy(rates)))


def learned_pairs(target: Target) -> Tensor:
    """Number of (bin, unit) pairs that the loss is about: with a valid response, or with a teacher all it predicts."""
    return target.mask.sum() if target.expected is None else target.expected.isfinite().sum()


def loss_of(likelihood: Likelihood, rates: Tensor, target: Target, teacher_weight: float) -> Tensor:
    r"""Summed loss of some clips, nats: of the responses y and, with a teacher, of its rates λ*.

    .. math:: (1 - w) \sum_{valid} -\log p(y|\lambda) + w \sum \mathrm{E}_{y \sim \lambda^*}[-\log p(y|\lambda)]

    The likelihood's own parameters, such as a dispersion, learn from the responses alone, because the teacher's rates
    do not scatter.

    Reference: Hinton, Vinyals & Dean 2015, Distilling the knowledge in a neural network.
    """
    nll = likelihood.nll(rates, target.responses, target.mask, target.exposure)
    if target.expected is None:
        return nll
    known = target.expected.isfinite()
    rate, response = likelihood.filler
    expected = torch.where(known, target.expected, response)
    learned = [parameter for parameter in likelihood.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        terms = likelihood.cross_entropy(torch.where(known, rates.float(), rate), expected)
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
    cost = torch.where(known, terms, 0.0).sum().to(nll.dtype)
    return (1 - teacher_weight) * nll + teacher_weight * cost
