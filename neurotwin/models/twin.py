"""The whole model: adapter[session] -> frontend -> convnet -> modulator(behaviour) -> recurrent -> readout[session].

One core for all sessions: each session's frames pass its adapter, then the core runs once over all of them together,
then each readout takes its part. See :class:`TwinModel`.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import Batch
from ..config import BaselineConfig, DatasetConfig, ModelConfig, nearest
from ..data.prepare import outline
from ..data.transforms import apply_pipelines, pixel_scale
from .checks import check_behavior, check_frames, check_history, check_lags, check_sessions, check_shift
from .registry import build
from .spec import SessionSpec
from .stages import Maps, Stage, channels_last, inside

__all__ = ["SESSION_PARTS", "CheckpointError", "TwinModel", "check_run", "load_twin"]

SESSION_PARTS = ("adapters", "readouts", "shifters", "history_encoders", "baselines")
"""Attributes of a model that hold one entry a session; all other parameters are the shared core."""

_FORMAT = "neurotwin-twin-1"


class CheckpointError(ValueError):
    """A file does not hold a model that can be loaded; the message says why."""


class TwinModel(nn.Module):
    """A digital twin of the units of some sessions.

    Parameters
    ----------
    config
        The model's config.
    sessions
        The sessions that it predicts; `Batch.session` is an index into them.
    generator
        Draws the initial weights; by default one seeded with 0. The process's global generator is not touched.

    Attributes
    ----------
    receptive_field
        Frames that a prediction depends on, recurrence aside.
    context
        Frames that a clip must bring before its first predicted one: receptive_field − 1, or n_lags − 1 with
        recurrence, whose state warms up over them.
    is_recurrent
        Whether a state is carried from frame to frame.
    auxiliary_loss
        After a training step with `lambda_pred`: the modulator's loss, weighted; else None.

    Raises
    ------
    ConfigError
        If config and sessions do not fit together; the message says what to change.

    Examples
    --------
    >>> config = ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 4}})
    >>> spec = SessionSpec(
    ...     name="ada_0501", subject="ada", unit_ids=(3, 8), frame_shape=(1, 12, 12), bin_rate=60.0, n_lags=8
    ... )
    >>> twin = TwinModel(config, [spec])
    >>> twin.receptive_field, twin.context
    (4, 3)
    >>> twin.predict(np.zeros((10, 12, 12), np.uint8), session="ada_0501").shape
    (10, 2)
    """

    def __init__(
        self, config: ModelConfig, sessions: Sequence[SessionSpec], *, generator: torch.Generator | None = None
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.config, self.sessions = config, tuple(sessions)
        check_sessions(config, self.sessions)
        behavior_dim, maps = self.sessions[0].behavior_dim, []
        self.adapters = nn.ModuleList()
        for spec in self.sessions:
            part = spec.config.adapter or config.adapter
            frames = Maps(*spec.frame_shape, bin_rate=spec.bin_rate)
            self.adapters.append(build(part, frames, generator=generator))
            maps.append(self.adapters[-1].outputs)
        maps = check_frames(config, self.sessions, maps)
        self.frontend: Stage = build(config.frontend, maps, generator=generator)
        self.convnet: Stage = build(config.convnet, self.frontend.outputs, generator=generator)
        self.receptive_field = 1 + self.frontend.context + self.convnet.context
        check_lags(self.receptive_field, self.sessions)
        check_behavior(config, self.sessions, self.convnet.outputs)
        self.modulator: Stage = build(
            config.modulator, self.convnet.outputs, behavior_dim=behavior_dim, generator=generator
        )
        if config.lambda_pred:
            self.modulator.predict_features(generator=generator)
        self.recurrent: Stage = build(config.recurrent, self.modulator.outputs, generator=generator)
        self.is_recurrent = self.modulator.is_recurrent or self.recurrent.is_recurrent
        self.context = (self.sessions[0].n_lags if self.is_recurrent else self.receptive_field) - 1
        self.readouts, self.shifters, self.history_encoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.baselines = nn.ParameterList()
        for spec in self.sessions:
            n_units = len(spec.unit_ids)
            positions = None if spec.unit_positions is None else torch.tensor(spec.unit_positions)
            with inside(f"session {spec.name}"):
                part, features = spec.config.readout or config.readout, self.recurrent.outputs
                self.readouts.append(build(part, features, n_units, positions=positions, generator=generator))
                if config.shifter.type != "none":
                    check_shift(part, self.readouts[-1], features)
                    names = spec.behavior_names
                    self.shifters.append(build(config.shifter, spec.behavior_dim, names, generator=generator))
            if config.history_encoder is not None:
                self.history_encoders.append(build(config.history_encoder, n_units, generator=generator))
            if config.baseline.enabled:
                self.baselines.append(nn.Parameter(_initial_baseline(config.baseline).expand(n_units).clone()))
        check_history(self.history_encoders, self.sessions)
        self.auxiliary_loss: Tensor | None = None

    @property
    def takes_behavior(self) -> bool:
        """Whether rates depend on behaviour."""
        return self.modulator.takes_behavior or len(self.shifters) > 0

    def forward(self, batches: list[Batch]) -> list[Tensor]:
        """Predict clips.

        Parameters
        ----------
        batches
            One batch a session, all of the same number of predicted bins, L.

        Returns
        -------
        list of Tensor
            Rates (B, L, U) of each, expected counts per bin.
        """
        return self.step(batches, None)[0]

    def step(self, batches: list[Batch], state: list[Any] | None) -> tuple[list[Tensor], list[Any] | None]:
        """Predict clips that continue those of the step before.

        Parameters
        ----------
        batches
            As for :meth:`forward`; with a state, the same sessions and numbers of clips as in the step before.
        state
            Of the recurrent stages after the frame before the first predicted one; None to start from nothing and
            warm up over all frames given.

        Returns
        -------
        list of Tensor
            Rates (B, L, U), expected counts per bin.
        list or None
            The state after the last frame; None for a model without recurrence.

        Raises
        ------
        ValueError
            If the clips differ in length, are too short, or lack behaviour or history that the model needs.
        """
        length = batches[0].length
        warm_up = self.context if state is None else self.receptive_field - 1
        for batch in batches:
            self._check(batch, length, warm_up)
        frames = torch.cat([self._frames(batch, warm_up + length) for batch in batches])
        behavior = None
        if self.modulator.takes_behavior:
            behavior = torch.cat([batch.behavior[:, -(warm_up + length) :].to(frames.dtype) for batch in batches])
        features, state, self.auxiliary_loss = self.core(frames, behavior, state)
        if features.shape[2] > length:
            features = features[:, :, -length:]
        if features.requires_grad:
            features.register_hook(channels_last)
        parts = features.split([len(batch.stimulus) for batch in batches])
        return [self._rates(b.session, x, b.behavior, b.history) for b, x in zip(batches, parts, strict=True)], state

    def core(
        self, x: Tensor, behavior: Tensor | None, state: list[Any] | None = None
    ) -> tuple[Tensor, list[Any] | None, Tensor | None]:
        """From frames (B, C, T, H, W) and behaviour (B, T, K) to the features that readouts see, and the state."""
        auxiliary = None
        state = [None, None] if state is None else state
        x = self.convnet(self.frontend(x))
        if self.modulator.takes_behavior:
            behavior = behavior[:, behavior.shape[1] - x.shape[2] :]
            if self.modulator.is_recurrent:
                x, modulator_state, error = self.modulator(x, behavior, state[0])
                after = [modulator_state]
                if error is not None:
                    auxiliary = self.config.lambda_pred * error
            else:
                x, after = self.modulator(x, behavior), [None]
        else:
            x, after = self.modulator(x), [None]
        if self.recurrent.is_recurrent:
            x, recurrent_state = self.recurrent(x, state[1])
            after.append(recurrent_state)
        else:
            x = self.recurrent(x)
            after.append(None)
        return x, after if self.is_recurrent else None, auxiliary

    @torch.no_grad()
    def initialise_rates(self, mean_counts: Sequence[Tensor]) -> None:
        """Set the biases of the readouts so that the initial rate of each unit is its mean training count per bin.

        Parameters
        ----------
        mean_counts
            (U,) of each session. Means below 1e-4 count as that, so that silent units keep a gradient.
        """
        for index, (readout, mean) in enumerate(zip(self.readouts, mean_counts, strict=True)):
            if getattr(readout, "bias", None) is None:
                continue
            rate = torch.as_tensor(mean).to(readout.bias.device, torch.float64)
            if self.config.baseline.enabled:
                rate = rate - self._baseline(index)
            readout.bias.copy_(_INVERSE[self.config.output_activation](rate.clamp_min(1e-4)))

    @torch.no_grad()
    def predict(
        self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        spikes: np.ndarray | None = None, chunk: int = 256,
    ) -> np.ndarray:  # fmt: skip
        """Rates for a raw movie.

        Parameters
        ----------
        stimulus
            (T, H, W) or (T, C, H, W), uint8, at the model's bin rate.
        behavior
            Raw signals by name, each (T,) or (T, K); the session's transforms are applied with the constants fitted
            in training.
        session
            Name or index of the session whose units are predicted.
        spikes
            (T, U) counts, for a model with spike history.
        chunk
            Frames predicted at a time; the result does not depend on it.

        Returns
        -------
        ndarray
            (T, U) expected counts per bin; NaN in the first `context` rows, which lack frames to see.
        """
        index = self.session_index(session)
        rates = np.full((len(stimulus), len(self.sessions[index].unit_ids)), np.nan, np.float32)
        history = None
        if self.history_encoders:
            if spikes is None:
                raise ValueError("this model sees spike history; give spikes, or draw them with sample()")
            n_lags, dtype = self.history_encoders[index].n_lags, self._like.dtype
            padded = np.concatenate([np.zeros((n_lags, rates.shape[1])), spikes])
            history = torch.as_tensor(padded, dtype=dtype, device=self._like.device)[None]
        with _evaluating(self):
            for start, stop, features, variables in self._stream(index, stimulus, behavior, chunk):
                seen = None if history is None else history[:, start : stop + n_lags]
                rates[start:stop] = self._rates(index, features, variables, seen)[0].cpu().numpy()
        return rates

    @torch.no_grad()
    def sample(
        self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        n_samples: int = 1, generator: torch.Generator | None = None, chunk: int = 256,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Draw spike trains forward in time; a model with spike history sees its own spikes, silence at first.

        Parameters
        ----------
        stimulus, behavior, session, chunk
            As for :meth:`predict`.
        n_samples
            Trains to draw.
        generator
            Source of the spikes; by default one seeded with 0.

        Returns
        -------
        spikes, rates
            (n_samples, T, U) counts and the rates that they were drawn from; NaN in the first `context` bins.
        """
        index = self.session_index(session)
        parameter = self._like
        generator = torch.Generator(parameter.device).manual_seed(0) if generator is None else generator
        n_units = len(self.sessions[index].unit_ids)
        encoder = self.history_encoders[index] if self.history_encoders else None
        recent = parameter.new_zeros(n_samples, encoder.n_lags if encoder else 1, n_units)
        spikes = np.full((n_samples, len(stimulus), n_units), np.nan, np.float32)
        rates = spikes.copy()
        with _evaluating(self):
            for start, _, features, variables in self._stream(index, stimulus, behavior, chunk):
                drives = self._drive(index, features, variables)[0]
                for bin, drive in enumerate(drives, start):
                    drive = drive + encoder(recent)[:, 0] if encoder else drive.expand(n_samples, -1)
                    rate = self._rate(index, drive)
                    counts = torch.poisson(rate, generator=generator)
                    recent = torch.cat([recent[:, 1:], counts[:, None]], dim=1)
                    spikes[:, bin], rates[:, bin] = counts.cpu(), rate.cpu()
        return spikes, rates

    def session_index(self, session: str | int) -> int:
        """Index of a session given by its name or index.

        Raises
        ------
        ValueError
            If the model has no such session.
        """
        names = [spec.name for spec in self.sessions]
        if isinstance(session, int) and -len(names) <= session < len(names):
            return session % len(names)
        if session not in names:
            raise ValueError(f"this model has no session {session!r}; {nearest(str(session), names)}")
        return names.index(session)

    def describe(self) -> dict[str, Any]:
        """All that is needed to build the model again, weights aside, as plain values that JSON can hold."""
        config = self.config.model_dump(mode="json", by_alias=True)
        return {"format": _FORMAT, "config": config, "sessions": [spec.to_json() for spec in self.sessions]}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "TwinModel":
        """Build the model that :meth:`describe` described, with initial weights."""
        if description.get("format") != _FORMAT:
            raise CheckpointError(f"describes {description.get('format')!r}, where {_FORMAT!r} can be read")
        sessions = [SessionSpec.from_json(spec) for spec in description["sessions"]]
        return cls(ModelConfig.model_validate(description["config"]), sessions)

    def save(self, path: str | Path) -> Path:
        """Write weights and description to one safetensors file, and return its path."""
        path = Path(path)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            save_file(tensors, temporary, metadata={"twin": json.dumps(self.describe())})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @property
    def _like(self) -> Tensor:
        """A parameter: the type and device of what the model computes with."""
        return next(self.readouts[0].parameters())

    def _check(self, batch: Batch, length: int, warm_up: int) -> None:
        name = self.sessions[batch.session].name
        if batch.length != length:
            raise ValueError(f"session {name}: a clip of {batch.length} bins beside one of {length}; use one length")
        if batch.stimulus.shape[2] < warm_up + length:
            raise ValueError(
                f"session {name}: {batch.stimulus.shape[2]} frames to predict {length} bins, where the model needs "
                f"{warm_up} more before them; gather clips with context={self.context}"
            )
        if self.takes_behavior and batch.behavior is None:
            raise ValueError(f"session {name}: the model needs behaviour, and the batch has none")
        if self.history_encoders and batch.history is None:
            raise ValueError(f"session {name}: the history encoder needs spike history, and the batch has none")

    def _frames(self, batch: Batch, frames: int) -> Tensor:
        """The last frames of a batch, scaled and adapted: (B, C, T, H, W)."""
        dtype = self._like.dtype
        x = batch.stimulus[:, :, -frames:]
        if self.config.initial_input_channels == 0:
            return torch.zeros(len(x), 0, frames, 1, 1, dtype=dtype, device=x.device)
        factor, offset = self.sessions[batch.session].pixel_scale
        x = x.to(dtype) if (factor, offset) == (1.0, 0.0) else x.to(dtype, copy=True).mul_(factor).add_(offset)
        return self.adapters[batch.session](x)

    def _rates(self, index: int, x: Tensor, behavior: Tensor | None, history: Tensor | None) -> Tensor:
        """Rates (B, L, U) of one session from features (B, C, L, H, W)."""
        drive = self._drive(index, x, behavior)
        if self.history_encoders:
            encoder, length = self.history_encoders[index], drive.shape[1]
            # The count of a bin is not among what predicts it.
            drive = drive + encoder(history[:, -(encoder.n_lags + length) : -1].to(drive.dtype))
        return self._rate(index, drive)

    def _drive(self, index: int, x: Tensor, behavior: Tensor | None) -> Tensor:
        """What the readout of one session makes of features (B, C, L, H, W), and of behaviour that ends with them."""
        if not self.shifters:
            return self.readouts[index](x)
        gaze = behavior[:, behavior.shape[1] - x.shape[2] :]
        return self.readouts[index](x, self.shifters[index](gaze.to(self._like.dtype)))

    def _rate(self, index: int, drive: Tensor) -> Tensor:
        rate = _ACTIVATION[self.config.output_activation](drive.to(self._like.dtype))
        return rate + self._baseline(index) if self.config.baseline.enabled else rate

    def _baseline(self, index: int) -> Tensor:
        return _POSITIVE[self.config.baseline.activation](self.baselines[index])

    def _stream(
        self, index: int, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None, chunk: int
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """First bin, one past the last, features (1, C, L, H, W) and behaviour, chunk by chunk."""
        spec, device = self.sessions[index], self._like.device
        signals = {"stim": stimulus, **(behavior or {})}
        for name, signal in signals.items():
            if len(signal) != len(stimulus):
                raise ValueError(f"{name} has {len(signal)} bins where the stimulus has {len(stimulus)}")
        if pixel_scale(spec.config) is None:
            stimulus = apply_pipelines(spec.config, signals, fitted=spec.fitted, outputs=("stim",))["stim"]
        frames = stimulus[:, None] if stimulus.ndim == 3 else stimulus
        if frames.shape[1:] != spec.frame_shape:
            raise ValueError(f"frames of shape {frames.shape[1:]} (C, H, W), where {spec.name} has {spec.frame_shape}")
        variables = None
        if self.takes_behavior:
            variables = apply_pipelines(spec.config, signals, fitted=spec.fitted, outputs=("behavior",))["behavior"]
            variables = torch.as_tensor(variables)[None].to(device, self._like.dtype)
        state = None
        for start in range(self.context, len(frames), chunk):
            stop = min(start + chunk, len(frames))
            first = start - (self.context if state is None else self.receptive_field - 1)
            clip = torch.as_tensor(np.array(frames[first:stop])).to(device).transpose(0, 1)[None]
            batch = Batch(session=index, stimulus=clip, spikes=None, mask=None, bins=None)
            seen = None if variables is None else variables[:, first:stop]
            features, state, _ = self.core(self._frames(batch, stop - first), seen, state)
            yield start, stop, features[:, :, start - stop :], seen


def check_run(config: ModelConfig, datasets: Sequence[DatasetConfig]) -> None:
    """Refuse a run that cannot be, before its data are prepared: only the headers of the session files are read.

    Raises
    ------
    ConfigError
        If model and sessions do not fit together.
    SessionError
        If a session is missing, or a config asks for what it does not have.
    """
    TwinModel(config, [SessionSpec.from_prepared(session) for session in outline(datasets)])


def load_twin(path: str | Path) -> TwinModel:
    """Open a model saved by :meth:`TwinModel.save`, or a training checkpoint (``.ckpt``), ready to predict.

    No code from the file is run.

    Raises
    ------
    CheckpointError
        If the file is missing, cut off, holds anything but numbers and text, or is no such model.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".ckpt":
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            text, prefix = checkpoint["twin"], "twin."
            weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        else:
            with safe_open(path, framework="pt") as file:
                text = file.metadata()["twin"]
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        twin = TwinModel.from_description(json.loads(text))
        twin.load_state_dict(weights)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than numbers and text, and is not opened: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: not a model that can be loaded: {type(error).__name__}: {error}") from None
    return twin.eval()


# --------------------------------------------------------------------------------------------------------------------


def _inverse_softplus(rate: Tensor) -> Tensor:
    return rate + (-(-rate).expm1()).log()


_ACTIVATION = {"softplus": F.softplus, "relu": torch.relu, "exp": torch.exp, "none": torch.exp, "identity": torch.exp}
_INVERSE = {"softplus": _inverse_softplus, "relu": torch.clone} | dict.fromkeys(("exp", "none", "identity"), torch.log)
_POSITIVE = {"softplus": F.softplus, "relu": torch.relu, "exp": torch.exp}


def _initial_baseline(config: BaselineConfig) -> Tensor:
    return _INVERSE[config.activation](torch.tensor(config.init_value))


class _evaluating:
    """Evaluation mode for a while."""

    def __init__(self, module: nn.Module):
        self.module, self.training = module, module.training

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.training)
