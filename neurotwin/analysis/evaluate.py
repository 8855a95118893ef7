"""How well a twin predicts: every session streamed once, one row a unit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..clip import Sample
from ..config import name_of
from ..data.clips import stream
from ..data.prepare import Prepared
from ..likelihoods import Likelihood
from ..metrics.definitions import compute_metrics
from ..metrics.reliability import stack_repeats
from ..metrics.sums import Sums
from ..metrics.table import EvaluationError, Table
from ..models.network import Streamer, evaluating
from ..models.twin import TwinModel

__all__ = ["SessionScore", "evaluate", "known_session", "score_session"]

_NEVER = 2**62


def evaluate(
    twin: TwinModel,
    sessions: Sequence[Prepared],
    split: str = "val",
    *,
    chunk: int = 256,
    bins: int = 1024,
    progress: Callable[[int, int, str], None] | None = None,
) -> Table:
    """Predict every valid bin of a split once, and compare with what was recorded.

    Parameters
    ----------
    twin
        The model; it is put into evaluation mode and back.
    sessions
        Prepared sessions, found in the twin by name.
    split
        "train", "val" or "test".
    chunk, bins
        Predicted bins of a clip and of a batch. They decide on memory and speed; figures depend on them to rounding
        only.
    progress
        Called with the index, the number of sessions and the name before each session.

    Returns
    -------
    Table
        One row a unit of every session, in their order. Units without valid bins are rows with `bins` 0.

    Raises
    ------
    EvaluationError
        If the twin does not know a session or its units, a prediction is not finite, or no session has a valid bin in
        the split.
    """
    indices = [known_session(twin, prepared) for prepared in sessions]
    tables = []
    for number, (index, prepared) in enumerate(zip(indices, sessions, strict=True)):
        if progress is not None:
            progress(number, len(sessions), prepared.name)
        tables.append(score_session(twin, prepared, index, split, chunk=chunk, bins=bins).table())
    table = Table.concatenate(tables)
    if not table["bins"].any():
        raise EvaluationError(f"no session has a valid bin in the {split} split; choose another, or set test_split")
    return table


def score_session(
    twin: TwinModel, prepared: Prepared, index: int, split: str, *, chunk: int = 256, bins: int = 1024
) -> "SessionScore":
    """Predict every valid bin of a split of one session once, and add up what its figures follow from.

    Parameters
    ----------
    twin, prepared, split, chunk, bins
        As for :func:`evaluate`.
    index
        Of the session in the twin, see :func:`known_session`.

    Raises
    ------
    EvaluationError
        If a prediction is not finite.
    """
    score = SessionScore(prepared, twin.per_session[index].likelihood, twin.like.device)
    with evaluating(twin), torch.inference_mode():
        predict = Streamer(twin)
        for sample in stream(prepared, split, context=twin.context, chunk=chunk, bins=bins):
            sample = sample.of_session(index).to(twin.like.device)
            score.update(sample, predict(sample.clip))
    if (fault := score.fault()) is not None:
        raise EvaluationError(f"{fault}; the model cannot be evaluated")
    return score


def known_session(twin: TwinModel, prepared: Prepared) -> int:
    """Index of a prepared session in a twin that was trained on its units.

    Raises
    ------
    EvaluationError
        If the twin does not know the session, or knows it with other units.
    """
    names = [spec.name for spec in twin.sessions]
    if prepared.name not in names:
        raise EvaluationError(f"the model was not trained on session {prepared.name!r}; it knows {', '.join(names)}")
    known = twin.sessions[names.index(prepared.name)].unit_ids
    if known != prepared.spec.unit_ids:
        raise EvaluationError(
            f"session {prepared.name!r}: the units prepared are not the {len(known)} that the model was trained on, in "
            "their order; set cids to those"
        )
    return names.index(prepared.name)


class SessionScore:
    """What is added up over the samples of one session.

    Parameters
    ----------
    prepared
        The session.
    likelihood
        Of the session's units.
    device
        Where the sums are kept.

    Attributes
    ----------
    sums
        The sums of the predicted rates; adding those of two processes gives those of all bins.
    """

    def __init__(self, prepared: Prepared, likelihood: Likelihood, device: torch.device | str = "cpu") -> None:
        self.prepared = prepared
        self.sums = Sums(likelihood, device)
        self.truth = None if prepared.true_rate is None else Sums(likelihood, device)
        self._first_bad = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._repeats: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, sample: Sample, rates: Tensor) -> None:
        """Add the predicted rates, (B, L, U), of a sample. No valid bin may be added twice."""
        self.update_sums(sample, rates)
        target, prepared = sample.target, self.prepared
        bins = np.minimum(_bins(sample).cpu().numpy(), prepared.n_bins - 1)  # those beyond the end are masked
        if self.truth is not None:
            true = torch.from_numpy(prepared.true_rate[bins]).to(rates.device)
            self.truth.update(true, target.responses, target.mask, target.exposure)
        mask = target.mask.cpu().numpy()
        repeated = (prepared.repeat_id[bins] >= 0) & mask.any(axis=2)
        if repeated.any():
            self._repeats.append((bins[repeated], mask[repeated], rates.float().cpu().numpy()[repeated]))

    def update_sums(self, sample: Sample, rates: Tensor) -> None:
        """Add to the sums alone; nothing waits for the device."""
        target = sample.target
        bad = (~rates.isfinite() & target.mask).any(dim=-1)
        self._first_bad = torch.minimum(self._first_bad, torch.where(bad, _bins(sample), _NEVER).min())
        self.sums.update(rates, target.responses, target.mask, target.exposure)

    def fault(self) -> str | None:
        """Where a prediction was not finite, in words: session, trial and bin; None if all were."""
        first = int(self._first_bad)
        if first == _NEVER:
            return None
        trial = self.prepared.trial[first]
        return f"a prediction of session {self.prepared.name} is not finite: trial {trial}, bin {first}"

    def table(self) -> Table:
        """One row a unit."""
        spec = self.prepared.spec
        evidence = replace(
            self.sums.evidence(),
            true_sums=None if self.truth is None else self.truth.evidence().sums,
            repeats=self.repeated(),
        )
        name = name_of("likelihood", type(self.sums.likelihood))
        return Table.of_session(spec.name, spec.subject, list(spec.unit_ids), name, compute_metrics(evidence))

    def repeated(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Responses per presentation and rates of repeated frames, (R, N, U) each; None where there were none."""
        if not self._repeats:
            return None
        bins, mask, rates = (np.concatenate(parts) for parts in zip(*self._repeats, strict=True))
        responses = self.prepared.responses[bins].astype(np.float64)
        if self.prepared.exposure is not None:
            responses /= self.prepared.exposure[bins, None]
        ids = self.prepared.repeat_id[bins]
        return stack_repeats(responses, mask, ids), stack_repeats(rates, mask, ids)


def _bins(sample: Sample) -> Tensor:
    """Index of each predicted bin in the prepared session, (B, L)."""
    bins = sample.clip.bins
    return bins[:, None] + torch.arange(sample.clip.length, device=bins.device)
