"""How well one twin stands in for another: their rates beside one another, and the figures of both, unit by unit."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data.arrange import modelled_bins
from ..data.prepare import Prepared, open_session, prepare
from ..data.session import SPLITS
from ..files import write_text
from ..metrics.sums import Sums
from ..metrics.table import EvaluationError, summarize
from ..models.twin import TwinModel
from .evaluate import known_session

__all__ = ["Parity", "check_parts", "parity", "rates_in_bins"]


@dataclass(frozen=True)
class Parity:
    """Teacher and student on the same bins, unit by unit.

    Attributes
    ----------
    merit
        Name of the figure of merit.
    session, unit_id
        (U,) of each unit of all sessions.
    correlation
        (U,) between the rates of the two over all predicted bins of the part, responses valid or not.
    teacher, student
        (U,) figure of merit of each over the valid responses of the part.
    parameters
        Of teacher and student.
    """

    merit: str
    session: np.ndarray
    unit_id: np.ndarray
    correlation: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    parameters: tuple[int, int]

    def write(self, path: str | Path) -> None:
        """Write one row a unit (.csv)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["session", "unit_id", "rate_correlation", f"teacher_{self.merit}", f"student_{self.merit}"])
        columns = (self.session, self.unit_id, self.correlation, self.teacher, self.student)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
        write_text(path, text.getvalue())

    def text(self) -> str:
        """In sentences."""
        loss = self.teacher - self.student
        share = self.parameters[1] / max(self.parameters[0], 1)
        return (
            f"The student has {self.parameters[1]:,} parameters, {share:.1%} of the teacher's. Mean {self.merit}: "
            f"teacher {summarize(self.teacher).mean:.4f}, student {summarize(self.student).mean:.4f}. Correlation of "
            f"their rates, median over units: {summarize(self.correlation).median:.4f}. "
            f"{int((loss > 0.01).sum())} of {len(loss)} units lose more than 0.01."
        )


def parity(teacher: TwinModel, student: TwinModel, sessions: Sequence[Prepared], split: str = "val") -> Parity:
    """Compare two twins on a part of some sessions.

    Parameters
    ----------
    teacher, student
        Both know the sessions and their units.
    sessions
        The sessions as prepared for the student: its division into parts holds.
    split
        "train", "val" or "test".

    Raises
    ------
    EvaluationError
        If one does not know a session or its units, or was trained on trials of the part.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    merit = student.per_session[0].likelihood.figure_of_merit
    for prepared in sessions:
        check_parts(teacher, prepared)
        rates = [rates_in_bins(twin, prepared) for twin in (teacher, student)]
        common = (np.asarray(prepared.split) == SPLITS.index(split)) & np.isfinite(rates[0] + rates[1]).all(axis=1)
        likelihoods = [twin.per_session[known_session(twin, prepared)].likelihood for twin in (teacher, student)]
        figures = [
            _figure(prepared, rate, likelihood, common, merit)
            for rate, likelihood in zip(rates, likelihoods, strict=True)
        ]
        agreement = _correlations(rates[0][common], rates[1][common])
        ids = np.asarray(prepared.spec.unit_ids).astype(str)
        parts.append((np.full(prepared.n_units, prepared.name), ids, agreement, *figures))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    sizes = tuple(sum(parameter.numel() for parameter in twin.parameters()) for twin in (teacher, student))
    return Parity(merit, *columns, sizes)


def rates_in_bins(twin: TwinModel, prepared: Prepared) -> np.ndarray:
    """What a twin expects in the bins of a session that was prepared for another one, (T, U) float32; NaN where none.

    The twin sees the recording with its own lags, behaviour, scaling and constants, also stimulus types that it was
    not trained on.

    Raises
    ------
    EvaluationError
        If it does not know the session, or knows it with other units or bins per second.
    """
    index, spec = known_session(twin, prepared), prepared.spec
    own = twin.sessions[index]
    if abs(own.bin_rate - spec.bin_rate) > 1e-6 * spec.bin_rate:
        raise EvaluationError(
            f"session {prepared.name!r}: has {spec.bin_rate:g} bins a second here, and {own.bin_rate:g} for the other "
            "model; set sampling as it was trained with"
        )
    recording = open_session(spec.config)
    widened = replace(own, config=own.config.model_copy(update={"types": spec.config.types}))
    before, twin.sessions = twin.sessions, tuple(widened if one is own else one for one in twin.sessions)
    try:
        prediction = twin.predict(recording, session=index)
    finally:
        twin.sessions = before
    place = np.full(recording.n_bins, -1)
    place[prediction.bins] = np.arange(len(prediction.bins))
    rows = place[modelled_bins(recording, spec.config).first]
    return np.where((rows >= 0)[:, None], prediction.rates[rows], np.float32("nan")).astype(np.float32)


def check_parts(twin: TwinModel, prepared: Prepared) -> None:
    """Refuse a twin that was trained on trials which are validation or test of a session as prepared.

    Raises
    ------
    EvaluationError
        If there is such a trial.
    """
    own = twin.sessions[known_session(twin, prepared)]
    (seen,) = prepare([own.config.model_copy(update={"path": prepared.spec.config.path})])
    trained = seen.trials("train")
    held_out = np.unique(prepared.trial[np.asarray(prepared.split) > SPLITS.index("train")])
    if len(both := np.intersect1d(trained, held_out)):
        raise EvaluationError(
            f"session {prepared.name!r}: trial {both[0]} is validation or test here, and the other model was trained "
            f"on it ({len(both)} such trials); use its division (seed, train_val_split, test_split, types), or label "
            "the parts in the recording"
        )


def _figure(
    prepared: Prepared, rates: np.ndarray, likelihood: torch.nn.Module, used: np.ndarray, merit: str
) -> np.ndarray:
    sums = Sums(likelihood, next(iter(likelihood.state_dict().values()), torch.zeros(())).device)
    exposure = None if prepared.exposure is None else torch.from_numpy(np.asarray(prepared.exposure)[used, None])
    given = (rates[used], np.asarray(prepared.responses)[used], np.asarray(prepared.mask)[used])
    sums.update(*(torch.from_numpy(np.ascontiguousarray(array)).to(sums.sums.device) for array in given), exposure)
    return np.asarray(sums.compute()[merit].cpu(), dtype=np.float64)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each column, (U,); NaN where one is constant."""
    a, b = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (a, b))
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), norm, out=np.full(a.shape[1], np.nan), where=norm > 0)
