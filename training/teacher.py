"""Learning from the rates of a trained model: what a teacher expects in every bin, and the loss about it.

The teacher predicts every stimulus once, before training, with its own lags, behaviour and scaling. The stimuli may
have no valid responses: such clips are learned from by the teacher's rates alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neurotwin.analysis.parity import check_parts, rates_in_bins
from neurotwin.clip import Sample, Target
from neurotwin.data.pipelines import pixel_scale
from neurotwin.data.prepare import Prepared, open_session
from neurotwin.data.session import SPLITS
from neurotwin.likelihoods import Likelihood
from neurotwin.metrics.table import EvaluationError
from neurotwin.models.inputs import as_trained
from neurotwin.models.storage import load_twin

__all__ = ["Lessons", "Teacher", "learned_pairs", "loss_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What is learned from a teacher.

    Attributes
    ----------
    sessions
        The sessions of a run as prepared, then the stimuli of further types, without responses.
    homes
        (S,) which session of the run each of them is, by index.
    rates
        (T, U) float32 of each: what the teacher expects; NaN in validation and test, and where it lacks frames to see.
    context
        Frames that it sees before a prediction.
    """

    sessions: list[Prepared]
    homes: np.ndarray
    rates: list[np.ndarray]
    context: int

    def taught(self, sample: Sample) -> Sample:
        """A sample of `sessions` as one of the run, with what the teacher expects; NaN beyond the end of a run."""
        prepared, starts = self.sessions[sample.session], sample.clip.bins.numpy()
        bins = starts[:, None] + np.arange(sample.clip.length)
        rates = self.rates[sample.session][np.minimum(bins, prepared.n_bins - 1)]
        inside = bins < np.asarray(prepared.run_stop)[starts][:, None]
        expected = torch.from_numpy(np.where(inside[..., None], rates, np.float32("nan")))
        taught = replace(sample, target=replace(sample.target, expected=expected))
        return taught.of_session(int(self.homes[sample.session]))


class Teacher:
    """A trained model, or an ensemble, that another model learns from.

    Parameters
    ----------
    path
        Its file or run folder.
    types
        Stimulus types, beside those of the dataset files, whose stimuli are learned from by its rates alone.

    Raises
    ------
    CheckpointError
        If it cannot be opened.
    """

    def __init__(self, path: str | Path, types: Sequence[str] = ()) -> None:
        self.path, self.types, self.twin = path, tuple(types), load_twin(path)

    def lessons(self, sessions: Sequence[Prepared]) -> Lessons:
        """What is learned from it about prepared sessions.

        Raises
        ------
        EvaluationError
            If it does not know a session or its units, or was trained on trials that are validated on here; or if
            there are no stimuli of a further type, or a session is trained on it.
        """
        for prepared in sessions:
            check_parts(self.twin, prepared)
        further, homes = self._further(sessions)
        everything, rates = [*sessions, *further], []
        for prepared in everything:
            logger.info("session %s: the rates of %s", prepared.name, self.path)
            found = rates_in_bins(self.twin, prepared)
            found[np.asarray(prepared.split) > SPLITS.index("train")] = np.nan
            rates.append(found)
        return Lessons(everything, np.array([*range(len(sessions)), *homes]), rates, self.twin.context)

    def _further(self, sessions: Sequence[Prepared]) -> tuple[list[Prepared], list[int]]:
        """The stimuli of the further types, without responses, and of which session each is, by index."""
        found, homes, seen = [], [], set()
        for index, prepared in enumerate(sessions):
            recording = open_session(prepared.spec.config)
            own = prepared.spec.config.types or recording.types
            if both := set(own) & set(self.types):
                raise EvaluationError(f"--teacher_types {min(both)}: session {prepared.name!r} is trained on that type")
            types = [kind for kind in recording.types if kind in self.types]
            seen |= set(types)
            if not types:
                continue
            if pixel_scale(prepared.spec.config) is None:
                raise EvaluationError(
                    f"--teacher_types: the stimulus of session {prepared.name!r} goes through more than scaling; leave "
                    "the types out"
                )
            shown = as_trained(prepared.spec, recording, types)
            nothing = {"mask": np.zeros_like(shown.mask), "n_valid": np.zeros_like(shown.n_valid), "stretches": None}
            found.append(replace(shown, split=np.zeros(shown.n_bins, np.int8), **nothing))
            homes.append(index)
        if absent := set(self.types) - seen:
            raise EvaluationError(f"--teacher_types {min(absent)}: no session has stimuli of that type")
        return found, homes


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
