"""How well a twin predicts: every session streamed once, one row a unit, and the summaries of the rows."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..clip import Batch
from ..data.clips import stream
from ..data.prepare import Prepared
from ..metrics.poisson import PoissonSums, summarize
from ..metrics.reliability import (
    cc_max,
    cc_norm,
    correlation_to_average,
    fev,
    feve,
    oracle_correlation,
    stack_repeats,
)
from ..models.twin import TwinModel

__all__ = [
    "COLUMNS",
    "METRICS",
    "EvaluationError",
    "GroupSummary",
    "SessionScore",
    "Table",
    "evaluate",
    "summarize_table",
]

METRICS = (
    "nll", "bps", "d2", "correlation", "oracle_bps", "fraction_of_oracle",
    "correlation_to_average", "cc_norm", "cc_max", "fev", "feve", "oracle_correlation",
)  # fmt: skip
"""Figures of the table, NaN where not defined; those of the second row need repeats in the split."""
COLUMNS: dict[str, type] = {
    "session": str, "subject": str, "unit_id": int, "spikes": float, "bins": int, **dict.fromkeys(METRICS, float),
}  # fmt: skip
"""Columns of the table, in order, and their types."""


class EvaluationError(ValueError):
    """An evaluation is not possible, or a table is not one; the message says why and what to do."""


@dataclass(frozen=True)
class Table:
    """One row a unit.

    Attributes
    ----------
    columns
        (N,) arrays by the names of :data:`COLUMNS`.
    """

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["unit_id"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, rows: np.ndarray) -> "Table":
        """The rows of a mask or of indices."""
        return Table({name: column[rows] for name, column in self.columns.items()})

    @classmethod
    def concatenate(cls, tables: Sequence["Table"]) -> "Table":
        """The rows of all, in order."""
        return cls({name: np.concatenate([table[name] for table in tables]) for name in COLUMNS})

    def write(self, path: str | Path) -> None:
        """Write a CSV file, whole or not at all; :meth:`read` gives the same numbers, to the last bit."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(zip(*(self.columns[name].tolist() for name in COLUMNS), strict=True))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        """Read a CSV file that :meth:`write` wrote.

        Raises
        ------
        EvaluationError
            If the file is missing or is not such a table.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
        except FileNotFoundError:
            raise EvaluationError(f"{path}: no such table; `neurotwin evaluate` writes one") from None
        absent = [name for name in COLUMNS if name not in header]
        if absent:
            raise EvaluationError(f"{path}: not a table of units, it lacks the columns {', '.join(absent)}")
        for line, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise EvaluationError(f"{path}:{line}: {len(row)} values under {len(header)} columns")
        try:
            columns = {
                name: np.array([kind(row[header.index(name)]) for row in rows], dtype=kind)
                for name, kind in COLUMNS.items()
            }
        except ValueError as error:
            raise EvaluationError(f"{path}: {error}") from None
        return cls(columns)


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
        Predicted bins of a clip and of a batch: memory and speed, no figure depends on them (to rounding).
    progress
        Called with the index, the number of sessions and the name before each session.

    Returns
    -------
    Table
        One row a unit of every session, in their order. Units without valid bins are rows with `bins` 0.

    Raises
    ------
    EvaluationError
        If the twin does not know a session or its units, or no session has a valid bin in the split.
    """
    names = [spec.name for spec in twin.sessions]
    for prepared in sessions:
        if prepared.name not in names:
            raise EvaluationError(
                f"the model was not trained on session {prepared.name!r}; it knows {', '.join(names)}"
            )
        known = tuple(twin.sessions[names.index(prepared.name)].unit_ids)
        if known != tuple(int(unit) for unit in prepared.unit_ids):
            raise EvaluationError(
                f"session {prepared.name!r}: the units prepared are not the {len(known)} that the model was trained "
                "on, in their order; set cids to those"
            )
    device = next(twin.parameters()).device
    was_training = twin.training
    twin.eval()
    tables = []
    try:
        with torch.inference_mode():
            for number, prepared in enumerate(sessions):
                if progress is not None:
                    progress(number, len(sessions), prepared.name)
                score = SessionScore(prepared, device)
                state = None
                for batch in stream(prepared, split, context=twin.context, chunk=chunk, bins=bins):
                    batch.session = names.index(prepared.name)
                    batch = batch.to(device)
                    (rates,), state = twin.step([batch], state if batch.carries else None)
                    score.update(batch, rates)
                tables.append(score.table())
    finally:
        twin.train(was_training)
    table = Table.concatenate(tables)
    if not table["bins"].any():
        raise EvaluationError(f"no session has a valid bin in the {split} split; choose another, or set test_split")
    return table


class SessionScore:
    """What is added up over the batches of one session.

    Parameters
    ----------
    prepared
        The session.
    device
        Where the sums are kept.
    """

    def __init__(self, prepared: Prepared, device: torch.device | str = "cpu") -> None:
        self.prepared = prepared
        self.sums = PoissonSums(prepared.n_units, device)
        self.oracle = None if prepared.true_rate is None else PoissonSums(prepared.n_units, device)
        self._repeats: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, batch: Batch, rates: Tensor) -> None:
        """Add the predicted rates, (B, L, U), of a batch; its unmasked bins must not have come before."""
        self.sums.update(rates, batch.spikes, batch.mask, batch.exposure)
        bins = batch.bins.cpu().numpy()[:, None] + np.arange(batch.length)
        bins = np.minimum(bins, self.prepared.n_bins - 1)  # those beyond the end are masked
        if self.oracle is not None:
            true = torch.from_numpy(self.prepared.true_rate[bins]).to(rates.device)
            self.oracle.update(true, batch.spikes, batch.mask, batch.exposure)
        mask = batch.mask.cpu().numpy()
        repeated = (self.prepared.repeat_id[bins] >= 0) & mask.any(axis=2)
        if repeated.any():
            self._repeats.append((bins[repeated], mask[repeated], rates.float().cpu().numpy()[repeated]))

    def table(self) -> Table:
        """One row a unit."""
        prepared = self.prepared
        n_units = prepared.n_units
        columns = {
            "session": np.full(n_units, prepared.name),
            "subject": np.full(n_units, prepared.subject),
            "unit_id": np.asarray(prepared.unit_ids, np.int64),
            **{name: np.full(n_units, np.nan) for name in METRICS},
            **{name: values.cpu().numpy() for name, values in self.sums.compute().items()},
        }
        columns["bins"] = columns["bins"].astype(np.int64)
        if self.oracle is not None:
            oracle = self.oracle.compute()["bps"].cpu().numpy()
            columns["oracle_bps"] = oracle
            columns["fraction_of_oracle"] = columns["bps"] / np.where(oracle > 0, oracle, np.nan)
        if self._repeats:
            columns |= self._reliability()
        return Table({name: columns[name] for name in COLUMNS})

    def _reliability(self) -> dict[str, np.ndarray]:
        bins, mask, rates = (np.concatenate(parts) for parts in zip(*self._repeats, strict=True))
        responses = self.prepared.spikes[bins].astype(np.float64)
        if self.prepared.exposure is not None:
            responses /= self.prepared.exposure[bins, None]
        ids = self.prepared.repeat_id[bins]
        y, rate = stack_repeats(responses, mask, ids), stack_repeats(rates, mask, ids)
        return {
            "correlation_to_average": correlation_to_average(y, rate),
            "cc_norm": cc_norm(y, rate),
            "cc_max": cc_max(y),
            "fev": fev(y),
            "feve": feve(y, rate),
            "oracle_correlation": oracle_correlation(y),
        }


@dataclass(frozen=True)
class GroupSummary:
    """One figure over a session, a subject or a run.

    Attributes
    ----------
    scope
        "session", "subject" or "run".
    name
        Of the session or subject; empty for the run.
    mean
        Mean over sessions of their means over units: each session one vote.
    unit_mean, median
        Over all units.
    n, n_nan
        Units counted, and those left out because the figure is NaN.
    """

    scope: str
    name: str
    mean: float
    unit_mean: float
    median: float
    n: int
    n_nan: int


def summarize_table(table: Table, metric: str = "bps") -> list[GroupSummary]:
    """Summaries of one figure: of each session, each subject, and last the run.

    Means of `fraction_of_oracle` are the mean BPS over the mean oracle BPS of the units that have both, since the ratio
    of a single unit has no bound where its oracle is near 0; the median is that of the units' ratios.
    """
    sessions = list(dict.fromkeys(table["session"].tolist()))
    subjects = list(dict.fromkeys(table["subject"].tolist()))
    groups = [("session", name, table["session"] == name) for name in sessions]
    groups += [("subject", name, table["subject"] == name) for name in subjects]
    groups.append(("run", "", np.ones(len(table), bool)))
    summaries = []
    for scope, name, rows in groups:
        group = table.where(rows)
        each = [_mean(group.where(group["session"] == s), metric) for s in sessions if s in group["session"]]
        _, median, n, n_nan = summarize(group[metric])
        summaries.append(GroupSummary(scope, name, summarize(each).mean, _mean(group, metric), median, n, n_nan))
    return summaries


def _mean(table: Table, metric: str) -> float:
    if metric != "fraction_of_oracle":
        return summarize(table[metric]).mean
    both = table.where(~np.isnan(table["bps"] + table["oracle_bps"]))
    oracle = summarize(both["oracle_bps"]).mean
    return summarize(both["bps"]).mean / oracle if oracle > 0 else float("nan")
