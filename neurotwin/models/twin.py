"""A twin is a network in use: it predicts recordings, draws responses, and is kept in files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint_file import CheckpointError
from ..clip import Clip
from ..config import ModelConfig
from ..data.pipelines import apply_pipelines, pixel_scale
from ..data.spec import SessionSpec
from ..tensorfile import save_arrays
from .network import Network, Streamer, evaluating

__all__ = ["TWIN_FORMAT", "TwinModel"]

TWIN_FORMAT = "neurotwin-twin-2"


class TwinModel(Network):
    """A digital twin of the units of some sessions; see :class:`~neurotwin.models.network.Network`.

    Examples
    --------
    >>> config = ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 4}})
    >>> spec = SessionSpec(
    ...     name="ada_0501", subject="ada", unit_ids=(3, 8), frame_shape=(1, 12, 12), bin_rate=60.0, n_lags=8
    ... )
    >>> twin = TwinModel(config, [spec])
    >>> twin
    TwinModel of 1 session, 2 units, 36 parameters: a prediction sees 4 frames of 1x12x12 at 60 Hz
    >>> twin.predict(np.zeros((10, 12, 12), np.uint8), session="ada_0501", bin_rate=60.0).shape
    (10, 2)
    """

    def __repr__(self) -> str:
        first, count = self.sessions[0], sum(parameter.numel() for parameter in self.parameters())
        units, number = sum(spec.n_units for spec in self.sessions), len(self.sessions)
        return (
            f"{type(self).__name__} of {number} session{'s' * (number > 1)}, {units} units, {count:,} parameters: a "
            f"prediction sees {self.receptive_field} frames of {'x'.join(map(str, first.frame_shape))} at "
            f"{first.bin_rate:g} Hz"
        )

    @torch.no_grad()
    def predict(
        self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        bin_rate: float, responses: np.ndarray | None = None, chunk: int = 256,
    ) -> np.ndarray:  # fmt: skip
        """Rates for a raw movie.

        Parameters
        ----------
        stimulus
            (T, ...) as a recording of the session holds it.
        behavior
            Raw signals by name, each (T,) or (T, K); the session's transforms are applied with the constants fitted
            in training.
        session
            Name or index of the session whose units are predicted.
        bin_rate
            Bins a second of what is given, Hz. It must be that of the model, because a movie at another rate would be
            predicted as if it were slower or faster.
        responses
            (T, U), for a model with spike history.
        chunk
            Frames predicted at a time; the result does not depend on it.

        Returns
        -------
        ndarray
            (T, U) expected responses per bin; NaN in the first `context` rows, which lack frames to see.

        Raises
        ------
        ValueError
            If what is given is not like what the session was trained on: another rate, frames of another size, fewer
            bins than a prediction sees, or values of another range.
        """
        index = self.session_index(session)
        rates = np.full((len(stimulus), self.sessions[index].n_units), np.nan, np.float32)
        history, n_lags = None, 0
        if self.takes_history:
            if responses is None:
                raise ValueError("this model sees spike history; give responses, or draw them with sample()")
            n_lags = self.per_session[index].history_encoder.n_lags
            padded = np.concatenate([np.zeros((n_lags, rates.shape[1])), responses])
            history = torch.as_tensor(padded, dtype=self.like.dtype, device=self.like.device)[None]
        with evaluating(self):
            for start, stop, features, variables in self._stream(index, stimulus, behavior, bin_rate, chunk):
                seen = None if history is None else history[:, start : stop + n_lags]
                rates[start:stop] = self.per_session[index](features, variables, seen)[0].cpu().numpy()
        return rates

    @torch.no_grad()
    def sample(
        self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        bin_rate: float, n_samples: int = 1, generator: torch.Generator | None = None, chunk: int = 256,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Draw responses forward in time; a model with spike history sees its own, silence at first.

        Parameters
        ----------
        stimulus, behavior, session, bin_rate, chunk
            As for :meth:`predict`.
        n_samples
            Responses to draw of every bin.
        generator
            Source of the responses; by default one seeded with 0.

        Returns
        -------
        responses, rates
            (n_samples, T, U) responses and the rates that they were drawn from; NaN in the first `context` bins.
        """
        index, like = self.session_index(session), self.like
        module, n_units = self.per_session[index], self.sessions[index].n_units
        generator = torch.Generator(like.device).manual_seed(0) if generator is None else generator
        encoder = module.history_encoder
        recent = like.new_zeros(n_samples, encoder.n_lags if encoder else 1, n_units)
        drawn = np.full((n_samples, len(stimulus), n_units), np.nan, np.float32)
        rates = drawn.copy()
        with evaluating(self):
            for start, _, features, variables in self._stream(index, stimulus, behavior, bin_rate, chunk):
                drives = module.drive(features, variables)[0]
                for bin, drive in enumerate(drives, start):
                    drive = drive + encoder(recent)[:, 0] if encoder else drive.expand(n_samples, -1)
                    rate = module.rate(drive)
                    responses = module.likelihood.sample(rate, generator=generator)
                    recent = torch.cat([recent[:, 1:], responses[:, None]], dim=1)
                    drawn[:, bin], rates[:, bin] = responses.cpu(), rate.cpu()
        return drawn, rates

    def describe(self) -> dict[str, Any]:
        """All that is needed to build the model again, weights aside, as plain values that JSON can hold."""
        config = self.config.model_dump(mode="json", by_alias=True)
        return {"format": TWIN_FORMAT, "config": config, "sessions": [spec.to_json() for spec in self.sessions]}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "TwinModel":
        """Build the model that :meth:`describe` described, with initial weights."""
        if description.get("format") != TWIN_FORMAT:
            raise CheckpointError(f"describes {description.get('format')!r}, where {TWIN_FORMAT!r} can be read")
        sessions = [SessionSpec.from_json(spec) for spec in description["sessions"]]
        return cls(ModelConfig.model_validate(description["config"]), sessions)

    def save(self, path: str | Path) -> Path:
        """Write weights and description to one safetensors file with checksums, and return its path."""
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        save_arrays(path, arrays, {"format": TWIN_FORMAT, "twin": json.dumps(self.describe())})
        return Path(path)

    def _stream(
        self, index: int, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None, bin_rate: float, chunk: int
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """First bin, one past the last, features (1, C, L, H, W) and behaviour, chunk by chunk."""
        spec, device = self.sessions[index], self.like.device
        self._check_raw(spec, stimulus, behavior, bin_rate)
        signals, bin_ms = {"stim": stimulus, **(behavior or {})}, 1000 / spec.bin_rate
        if pixel_scale(spec.config) is None:
            settings = {"fitted": spec.fitted, "bin_ms": bin_ms}
            stimulus = apply_pipelines(spec.config, signals, outputs=("stim",), **settings)["stim"]
        frames = stimulus.reshape(len(stimulus), *spec.frame_shape)
        variables = None
        if self.takes_behavior:
            settings = {"fitted": spec.fitted, "bin_ms": bin_ms}
            variables = apply_pipelines(spec.config, signals, outputs=("behavior",), **settings)["behavior"]
            variables = torch.as_tensor(variables)[None].to(device, self.like.dtype)
        streamer = Streamer(self)
        for start in range(self.context, len(frames), chunk):
            stop, carries = min(start + chunk, len(frames)), start > self.context
            first = start - (self.receptive_field - 1 if carries else self.context)
            shown = torch.as_tensor(np.array(frames[first:stop])).to(device).transpose(0, 1)[None]
            seen = None if variables is None else variables[:, first:stop]
            features, _ = streamer.features(Clip(index, stop - start, shown, behavior=seen, carries=carries))
            yield start, stop, features, seen

    def _check_raw(
        self, spec: SessionSpec, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None, bin_rate: float
    ) -> None:
        if abs(bin_rate - spec.bin_rate) > 1e-3 * spec.bin_rate:
            raise ValueError(
                f"the movie has {bin_rate:g} bins a second and the model of {spec.name} {spec.bin_rate:g}; resample it"
            )
        for name, signal in (behavior or {}).items():
            if len(signal) != len(stimulus):
                raise ValueError(f"{name} has {len(signal)} bins where the stimulus has {len(stimulus)}")
        if len(stimulus) <= self.context:
            raise ValueError(
                f"{len(stimulus)} frames: a prediction sees {self.context + 1}, so give at least as many; show a blank "
                "before the movie if there is nothing else"
            )
        if pixel_scale(spec.config) is not None and np.prod(stimulus.shape[1:]) != np.prod(spec.frame_shape):
            raise ValueError(
                f"frames of shape {stimulus.shape[1:]}, where {spec.name} has {spec.frame_shape} (C, H, W)"
            )
        if spec.stimulus_range is None:
            return
        low, high = spec.stimulus_range
        least, most, span = float(np.min(stimulus)), float(np.max(stimulus)), max(high - low, 1e-12)
        if not (low - span <= least and most <= high + span):
            fault = f"reach from {least:g} to {most:g}"
        elif np.asarray(stimulus).dtype != np.uint8 and span > 50 and least >= 0 and most <= 1:
            fault = f"reach from {least:g} to {most:g}, as if they were scaled already"
        else:
            return
        raise ValueError(
            f"values of the stimulus {fault}, where those that {spec.name} was trained on reach from {low:g} to "
            f"{high:g}; give them as recorded"
        )
