"""The network: adapter[session] -> frontend -> convnet -> modulator(behaviour) -> recurrent -> readout[session].

All sessions share one core. The frames of each session pass its own adapter. Then the core runs once over the frames of
all sessions together. At last the readout of each session turns its share of the features into rates.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..clip import Clip
from ..config import ModelConfig, nearest
from ..data.fields import shortened
from ..data.spec import SessionSpec
from ..likelihoods import ResponseStatistics
from .checks import check_behavior, check_frames, check_lags, check_sessions
from .session_module import SessionModule
from .stages import Stage, build, channels_last, reserving

__all__ = ["CORE_PARTS", "Member", "Network", "Streamer", "evaluating", "mean_of"]

CORE_PARTS = ("frontend", "convnet", "modulator", "recurrent")
"""Stages of the shared core, in the order in which they are run."""


class Network(nn.Module):
    """A network for some sessions.

    Parameters
    ----------
    config
        The model's config.
    sessions
        The sessions that it predicts; `Clip.session` is an index into them.
    generator
        Draws the initial weights; by default one seeded with 0. The process's global generator is not touched.

    Attributes
    ----------
    frontend, convnet, modulator, recurrent
        Stages of the shared core.
    per_session
        A :class:`~neurotwin.models.session_module.SessionModule` for each session.
    receptive_field
        Frames that a prediction depends on, recurrence aside.
    context
        Frames that a clip must bring before its first predicted one. Without recurrence these are receptive_field − 1.
        With recurrence they are n_lags − 1: the state starts there, and is not zero at the first predicted bin.
    is_recurrent
        Whether a state is carried from frame to frame.
    auxiliary_loss
        After a training step with `lambda_pred`: the modulator's loss, weighted; else None.

    Raises
    ------
    ConfigError
        If config and sessions do not fit together; the message says what to change.
    """

    @reserving()
    def __init__(
        self, config: ModelConfig, sessions: Sequence[SessionSpec], *, generator: torch.Generator | None = None
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.config, self.sessions = config, tuple(sessions)
        check_sessions(config, self.sessions)
        adapters = [SessionModule.make_adapter(config, spec, generator=generator) for spec in self.sessions]
        maps = check_frames(config, self.sessions, [adapter.outputs for adapter in adapters])
        self.frontend: Stage = build(config.frontend, maps, generator=generator)
        self.convnet: Stage = build(config.convnet, self.frontend.outputs, generator=generator)
        check_behavior(config, self.sessions)
        self.modulator: Stage = build(
            config.modulator, self.convnet.outputs, behavior_dim=self.sessions[0].behavior_dim, generator=generator
        )
        if config.lambda_pred:
            self.modulator.predict_features(generator=generator)
        self.recurrent: Stage = build(config.recurrent, self.modulator.outputs, generator=generator)
        self.receptive_field = 1 + sum(stage.context for stage in self.stages)
        check_lags(self.receptive_field, self.sessions)
        self.is_recurrent = any(stage.is_recurrent for stage in self.stages)
        self.context = (self.sessions[0].n_lags if self.is_recurrent else self.receptive_field) - 1
        features = self.recurrent.outputs
        self.per_session = nn.ModuleList(
            SessionModule(config, spec, adapter, features, generator=generator)
            for spec, adapter in zip(self.sessions, adapters, strict=True)
        )
        self.auxiliary_loss: Tensor | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The shared core, in the order in which its stages are run."""
        return tuple(getattr(self, part) for part in CORE_PARTS)

    @property
    def members(self) -> tuple["Member", ...]:
        """The networks whose mean rates are predicted: this one; of an ensemble, several."""
        everything = len(self.sessions)
        return (Member(self, tuple(range(everything)), (None,) * everything),)

    @property
    def like(self) -> Tensor:
        """A parameter: the type and device of what the network computes with."""
        return self.per_session[0].like

    @property
    def sees_stimulus(self) -> bool:
        """Whether rates depend on the stimulus."""
        return self.config.initial_input_channels != 0

    @property
    def core_takes_behavior(self) -> bool:
        """Whether features depend on behaviour."""
        return any(stage.takes_behavior for stage in self.stages)

    @property
    def takes_behavior(self) -> bool:
        """Whether rates depend on behaviour."""
        return self.core_takes_behavior or self.config.shifter.type != "none"

    @property
    def takes_history(self) -> bool:
        """Whether rates depend on the units' own past."""
        return self.config.history_encoder is not None

    @property
    def history_lags(self) -> int:
        """Bins of the units' own past that rates depend on."""
        return self.per_session[0].history_encoder.n_lags if self.takes_history else 0

    def forward(self, clips: list[Clip]) -> list[Tensor]:
        """Predict clips.

        Parameters
        ----------
        clips
            One entry a session, all of the same number of predicted bins, L.

        Returns
        -------
        list of Tensor
            Rates (B, L, U) of each, expected responses per bin and presentation.
        """
        return self.step(clips, None)[0]

    def step(self, clips: list[Clip], state: list[Any] | None) -> tuple[list[Tensor], list[Any] | None]:
        """Predict clips that continue those of the step before.

        Parameters
        ----------
        clips
            As for :meth:`forward`; with a state, the same sessions and numbers of clips as in the step before.
        state
            Of the core's stages after the frame before the first predicted one; None to start from nothing and warm up
            over all frames given.

        Returns
        -------
        list of Tensor
            Rates (B, L, U), expected responses per bin and presentation.
        list or None
            The state after the last frame; None for a model without recurrence.

        Raises
        ------
        ValueError
            If the clips differ in length, are too short, or lack behaviour or history that the model needs.
        """
        for clip in clips:
            if self.takes_history and clip.history is None:
                name = self.sessions[clip.session].name
                raise ValueError(f"session {name}: the history encoder needs spike history, and the clip has none")
        features, behavior, state = self.features(clips, state)
        return [
            self.per_session[clip.session](x, seen, clip.history)
            for clip, x, seen in zip(clips, features, behavior, strict=True)
        ], state

    def each(self, clips: list[Clip], state: Any) -> tuple[list[list[Tensor]], Any]:
        """Rates of each member, of which :meth:`step` gives the mean, and the state."""
        rates, state = self.step(clips, state)
        return [rates], state

    def drives(self, clip: Clip, state: Any) -> tuple[list[Tensor], Any]:
        """What drives the units in each member, spike history aside, (B, L, U), and the state."""
        (x,), (behavior,), state = self.features([clip], state)
        return [self.per_session[clip.session].drive(x, behavior)], state

    def features(
        self, clips: list[Clip], state: list[Any] | None
    ) -> tuple[list[Tensor], list[Tensor | None], list[Any] | None]:
        """What the core makes of clips: features (B, C, L, H, W) and behaviour of each, and the state."""
        length = clips[0].length
        warm_up = self.context if state is None else self.receptive_field - 1
        for clip in clips:
            self._check(clip, length, warm_up)
        frames = torch.cat([self._frames(clip, warm_up + length) for clip in clips])
        behavior = None
        if self.core_takes_behavior:
            behavior = torch.cat([clip.behavior[:, -(warm_up + length) :].to(frames.dtype) for clip in clips])
        x, state = self.core(frames, behavior, state)
        self.auxiliary_loss = None
        if (loss := self.modulator.auxiliary_loss) is not None:
            self.auxiliary_loss = self.config.lambda_pred * loss
        if x.shape[2] > length:
            x = x[:, :, -length:]
        if x.requires_grad:
            x.register_hook(channels_last)
        parts = x.split([len(clip.stimulus) for clip in clips])
        return list(parts), [clip.behavior for clip in clips], state

    def core(
        self, x: Tensor, behavior: Tensor | None, state: list[Any] | None = None
    ) -> tuple[Tensor, list[Any] | None]:
        """From frames (B, C, T, H, W) and behaviour (B, T, K) to the features that readouts see, and the state."""
        after = []
        for stage, before in zip(self.stages, state or [None] * len(CORE_PARTS), strict=True):
            seen = None if behavior is None else behavior[:, behavior.shape[1] - x.shape[2] :]
            x, carried = stage(x, seen, before)
            after.append(carried)
        return x, after if self.is_recurrent else None

    def initialise(self, statistics: Sequence[ResponseStatistics]) -> None:
        """Start each session's units from their training responses; readouts then predict the mean of each unit."""
        for module, known in zip(self.per_session, statistics, strict=True):
            module.initialise(known)

    def session_index(self, session: str | int) -> int:
        """Index of a session given by its name or index.

        Raises
        ------
        ValueError
            If the model has no such session.
        """
        names = [spec.name for spec in self.sessions]
        if isinstance(session, int) and not isinstance(session, bool) and -len(names) <= session < len(names):
            return session % len(names)
        if not isinstance(session, str) or session not in names:
            hint = nearest(session if isinstance(session, str) else shortened(session), names)
            raise ValueError(f"this model has no session {shortened(session)}; {hint}")
        return names.index(session)

    def _check(self, clip: Clip, length: int, warm_up: int) -> None:
        name = self.sessions[clip.session].name
        if clip.length != length:
            raise ValueError(f"session {name}: a clip of {clip.length} bins beside one of {length}; use one length")
        if clip.stimulus.shape[2] < warm_up + length:
            raise ValueError(
                f"session {name}: {clip.stimulus.shape[2]} frames to predict {length} bins, where the model needs "
                f"{warm_up} more before them; gather clips with context={self.context}"
            )
        if self.takes_behavior and clip.behavior is None:
            raise ValueError(f"session {name}: the model needs behaviour, and the clip has none")

    def _frames(self, clip: Clip, frames: int) -> Tensor:
        """The last frames of clips, scaled and adapted: (B, C, T, H, W)."""
        dtype = self.like.dtype
        x = clip.stimulus[:, :, -frames:]
        if not self.sees_stimulus:
            return torch.zeros(len(x), 0, frames, 1, 1, dtype=dtype, device=x.device)
        factor, offset = self.sessions[clip.session].pixel_scale
        x = x.to(dtype) if (factor, offset) == (1.0, 0.0) else x.to(dtype, copy=True).mul_(factor).add_(offset)
        return self.per_session[clip.session].adapter(x)[0]


@dataclass(frozen=True, eq=False)
class Member:
    """A network that a twin predicts with, and what the sessions of the twin are to it.

    Whoever predicts goes through `twin.members` and takes the mean of their rates; a twin of one network has one.

    Attributes
    ----------
    network
        The network.
    sessions
        Of each session of the twin, its index in the network.
    columns
        Of each session of the twin, which of its behaviour variables the network was trained on, in its own order;
        None for all of them.
    """

    network: Network
    sessions: tuple[int, ...]
    columns: tuple[tuple[int, ...] | None, ...]

    def module(self, session: int) -> SessionModule:
        """The parts of a session of the twin."""
        return self.network.per_session[self.sessions[session]]  # type: ignore[return-value]

    def behavior(self, session: int, values: Tensor | None) -> Tensor | None:
        """What the network sees of behaviour (..., K) of a session of the twin."""
        columns = self.columns[session]
        return values if values is None or columns is None else values[..., list(columns)]

    def clip(self, clip: Clip) -> Clip:
        """Clips of the twin as the network takes them."""
        behavior = self.behavior(clip.session, clip.behavior)
        return replace(clip, session=self.sessions[clip.session], behavior=behavior)


class Streamer:
    """Predicts clips that continue one another: the state of a recurrent core is carried from each to the next.

    Prediction, evaluation and validation all use this class. Without recurrence, a prediction depends on its own frames
    only. With recurrence, it depends on all frames since the start of the stretch, and the carried state holds what is
    needed of them. The predictions of a stretch therefore do not depend on the length of the clips it was cut into.
    Every member of an ensemble has a state of its own.

    Parameters
    ----------
    network
        The network, or an ensemble.
    """

    def __init__(self, network: Network):
        self.network, self._state = network, None

    def __call__(self, clip: Clip) -> Tensor:
        """Rates (B, L, U) of clips; where these do not continue those before them, the state starts anew."""
        (rates,), self._state = self.network.step([clip], self._before(clip))
        return rates

    def each(self, clip: Clip) -> list[Tensor]:
        """Rates (B, L, U) of each member."""
        made, self._state = self.network.each([clip], self._before(clip))
        return [rates for (rates,) in made]

    def drives(self, clip: Clip) -> list[Tensor]:
        """What drives the units in each member, spike history aside, (B, L, U): for a caller that computes the rates.

        The rates are those of :meth:`~neurotwin.models.session_module.SessionModule.rate`.
        """
        made, self._state = self.network.drives(clip, self._before(clip))
        return made

    def features(self, clip: Clip) -> tuple[Tensor, Tensor | None]:
        """What the readouts of a single network see, (B, C, L, H, W), and behaviour, in place of rates."""
        (x,), (behavior,), self._state = self.network.features([clip], self._before(clip))
        return x, behavior

    def _before(self, clip: Clip) -> Any:
        return self._state if clip.carries else None


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """The mean of what the members of a twin give; of a single one, what it gives."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(dim=0)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while; every part is then in the mode that it was in before."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
