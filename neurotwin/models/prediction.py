"""What comes back from a twin that was shown a recording: expected or drawn responses beside what was recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .network import Network, mean_of

__all__ = ["Drawing", "Draws", "Prediction", "Recorded"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """The modelled bins of a recording: T after resampling, in the order of the prepared session, type by type.

    Attributes
    ----------
    session
        Name of the model's session whose units these are.
    unit_ids
        (U,) ids of its units.
    bin_rate
        Bins a second, Hz, after resampling.
    bins
        (T,) the first recorded bin of each.
    time
        (T,) start of each, s: the recording's own time, or from its first bin where it has none.
    trial
        (T,) trial of each, as recorded.
    split
        (T,) "train", "val" or "test", or an empty string, as training drew it.
    repeat_id
        (T,) equal ids ≥ 0 are repeats of one another.
    responses
        (T, U) as recorded, per bin.
    mask
        (T, U) bool: where a response is valid and was predicted.
    exposure
        (T,) presentations that a bin's responses sum over.
    """

    session: str
    unit_ids: tuple[int, ...] | tuple[str, ...]
    bin_rate: float
    bins: np.ndarray
    time: np.ndarray
    trial: np.ndarray
    split: np.ndarray
    repeat_id: np.ndarray
    responses: np.ndarray
    mask: np.ndarray
    exposure: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(Recorded):
    """What a twin expects of a recording, beside what was recorded; ``np.asarray`` of it is `rates`.

    Attributes
    ----------
    rates
        (T, U) expected responses per bin and presentation; NaN where a bin lacks frames to see, or lies in another part
        than the one asked for. Responses are compared with `exposure` times these.
    disagreement
        (T, U) standard deviation of the rates over the members of an ensemble, √(Σ (λₘ − λ)² / M); NaN where `rates`
        are. None for a twin of one network.
    """

    rates: np.ndarray
    disagreement: np.ndarray | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.rates, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.rates)

    def __repr__(self) -> str:
        predicted = int(np.isfinite(self.rates).any(axis=1).sum())
        return (
            f"Prediction of {self.session}: {predicted} of {len(self)} bins at {self.bin_rate:g} Hz, "
            f"{len(self.unit_ids)} units, {int(self.mask.sum())} valid responses"
        )

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each predicted bin and unit.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        import pandas

        rows = np.flatnonzero(np.isfinite(self.rates).any(axis=1))
        n_units = len(self.unit_ids)
        per_bin = {key: getattr(self, key)[rows] for key in ("bins", "time", "trial", "split", "exposure")}
        columns = {"session": self.session} | {key: np.repeat(value, n_units) for key, value in per_bin.items()}
        columns |= {"unit_id": np.tile(np.asarray(self.unit_ids), len(rows))}
        more = ("disagreement",) if self.disagreement is not None else ()
        columns |= {key: getattr(self, key)[rows].reshape(-1) for key in ("rates", *more, "responses", "mask")}
        names = {"bins": "bin", "rates": "rate", "responses": "response", "mask": "valid"}
        return pandas.DataFrame({names.get(key, key): value for key, value in columns.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws(Recorded):
    """Responses drawn for a recording; it unpacks as ``drawn, rates``.

    Attributes
    ----------
    drawn
        (N, T, U) responses, each of as many presentations as `exposure` says; NaN where a bin was not predicted.
    rates
        (N, T, U) what they were drawn from, per presentation.
    """

    drawn: np.ndarray
    rates: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self.drawn
        yield self.rates


class Drawing:
    """Draws responses of one session forward in time; a model with spike history sees its own, silence at first.

    Parameters
    ----------
    twin
        The network, or an ensemble.
    session
        Index of the session.
    n_samples
        Responses to draw of every bin.
    generator
        Source of the responses.
    """

    def __init__(self, twin: Network, session: int, n_samples: int, generator: torch.Generator) -> None:
        self.modules = [member.module(session) for member in twin.members]
        self.likelihood, self.history_lags = twin.per_session[session].likelihood, twin.history_lags
        self.n_samples, self.generator = n_samples, generator
        self._recent: Tensor | None = None

    def __call__(
        self, drives: list[Tensor], *, carries: bool, exposure: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Draw clips.

        Parameters
        ----------
        drives
            (B, L, U) of each member, history aside (:meth:`~neurotwin.models.network.Streamer.drives`).
        carries
            Whether the clips continue those of the call before.
        exposure
            (B, L, 1) presentations, or None for one.

        Returns
        -------
        drawn, rates
            (N, B, L, U) each.
        """
        n_clips, length, n_units = drives[0].shape
        if not carries:
            shape = (self.n_samples * n_clips, max(self.history_lags, 1), n_units)
            self._recent = drives[0].new_zeros(shape)
        drawn, rates = [], []
        for bin in range(length):
            rate = mean_of([self._rate(number, drive[:, bin]) for number, drive in enumerate(drives)])
            shown = None if exposure is None else exposure[:, bin].to(rate.dtype)
            responses = self.likelihood.sample(rate, shown, self.generator)
            self._recent = torch.cat([self._recent[:, 1:], responses.reshape(-1, 1, n_units)], dim=1)
            drawn.append(responses)
            rates.append(rate)
        return torch.stack(drawn, dim=2), torch.stack(rates, dim=2)

    def _rate(self, number: int, drive: Tensor) -> Tensor:
        """Rates (N, B, U) of a member from its drive (B, U) in a bin and from what was drawn before it."""
        module, drive = self.modules[number], drive.expand(self.n_samples, -1, -1)
        if (encoder := module.history_encoder) is not None:
            drive = drive + encoder(self._recent[:, -encoder.n_lags :])[:, 0].reshape(drive.shape)
        return module.rate(drive)
