"""Whether a model and its sessions fit together; each check raises a ConfigError that says what to change."""

from collections.abc import Sequence

from torch import nn

from ..config import MODEL, ConfigError, ModelConfig, Part, notice, registered
from ..data.spec import SessionSpec
from .stages import Maps

__all__ = ["check_behavior", "check_frames", "check_history", "check_lags", "check_sessions", "check_shift"]


def check_sessions(config: ModelConfig, sessions: Sequence[SessionSpec]) -> None:
    """Names, units, channels and bin rates."""
    if not sessions:
        raise ConfigError("a model needs at least one session")
    names = [spec.name for spec in sessions]
    if config.model_type == "v1" and len(sessions) > 1:
        raise ConfigError(f"model_type: v1 is for one session, and there are {len(sessions)}; use v1multi")
    for spec in sessions:
        if names.count(spec.name) > 1:
            raise ConfigError(f"two sessions are called {spec.name!r}; rename one")
        if not spec.unit_ids:
            raise ConfigError(f"session {spec.name}: no unit to predict; leave the session out, or choose other cids")
        if config.initial_input_channels not in (0, spec.frame_shape[0]):
            raise ConfigError(
                f"session {spec.name}: its frames have {spec.frame_shape[0]} channels, and initial_input_channels is "
                f"{config.initial_input_channels}"
            )
        if spec.bin_rate != sessions[0].bin_rate:
            raise ConfigError(
                f"session {spec.name} has {spec.bin_rate:g} bins a second and {names[0]} {sessions[0].bin_rate:g}; "
                f"resample to one rate with `sampling`"
            )
    rate = sessions[0].bin_rate
    if config.sampling_rate is not None and abs(config.sampling_rate - rate) > 1e-3 * rate:
        notice(MODEL, ("sampling_rate",), f"is a label: it says {config.sampling_rate:g} Hz, the data have {rate:g}")


def check_frames(config: ModelConfig, sessions: Sequence[SessionSpec], maps: Sequence[Maps]) -> Maps:
    """What the core sees, which must be the same for every session."""
    if config.initial_input_channels == 0:
        for part in (config.frontend, config.convnet):
            if part.type != "none":
                raise ConfigError(f"{part.kind}: initial_input_channels: 0 leaves it nothing to see; set it to none")
        return Maps(0, 1, 1, bin_rate=sessions[0].bin_rate)
    for spec, adapted in zip(sessions, maps, strict=True):
        if adapted != maps[0]:
            raise ConfigError(
                f"session {spec.name} gives the core frames of {adapted.height}x{adapted.width} pixels and "
                f"{sessions[0].name} {maps[0].height}x{maps[0].width}; use an adapter of one grid_size for all"
            )
    for side in ("height", "width"):
        if getattr(config, side) not in (None, getattr(maps[0], side)):
            raise ConfigError(
                f"{side}: {getattr(config, side)}, but the core is given frames of {maps[0].height}x{maps[0].width}; "
                f"correct it, or use an adapter"
            )
    return maps[0]


def check_lags(receptive_field: int, sessions: Sequence[SessionSpec]) -> None:
    """Whether a prediction is given at least as many frames as the core sees."""
    for spec in sessions:
        if spec.n_lags < receptive_field:
            raise ConfigError(
                f"session {spec.name}: the core sees {receptive_field} frames, and keys_lags gives it {spec.n_lags}; "
                f"set keys_lags: {{stim: [0..{receptive_field - 1}]}} or shorten the temporal kernels"
            )


def check_behavior(config: ModelConfig, sessions: Sequence[SessionSpec]) -> None:
    """Whether every part that needs behaviour is given it, with the number of variables that it expects."""
    for part in (config.modulator, config.shifter):
        for spec in sessions:
            if part.type != "none" and spec.behavior_dim == 0:
                raise ConfigError(
                    f"session {spec.name}: {part.kind} {part.type} needs behaviour, and there is none; add a transform "
                    f"with expose_as: behavior, or set the {part.kind} to none"
                )
    if config.modulator.type == "none":
        return
    wanted = getattr(config.modulator.params, "behavior_dim", None) or sessions[0].behavior_dim
    for spec in sessions:
        if spec.behavior_dim != wanted:
            raise ConfigError(
                f"session {spec.name}: {spec.behavior_dim} behaviour variables where {wanted} are expected (by "
                f"behavior_dim or the first session); use the same transforms for all sessions"
            )


def check_shift(part: Part, readout: nn.Module, features: Maps) -> None:
    """Whether the readout has positions that a shifter can move."""
    if not getattr(readout, "takes_shift", False):
        able = [name for name, kind in registered("readout").items() if getattr(kind, "takes_shift", False)]
        raise ConfigError(
            f"readout: {part.type} has no positions that a shifter could move; use {', '.join(able)}, or set the "
            "shifter to none"
        )
    if (features.height, features.width) == (1, 1):
        raise ConfigError("readout: a shifter has nowhere to move on maps of 1x1 pixels; set the shifter to none")


def check_history(n_lags: int, spec: SessionSpec) -> None:
    """Whether a history encoder is given as many bins as it looks at, and none that hold later responses."""
    for name, exposed, pipeline in spec.config.pipelines():
        ahead = [op.name for op in pipeline.ops if getattr(op.params, "looks_ahead", "")]
        if ahead and exposed == "robs":
            raise ConfigError(
                f"session {spec.name}: transforms.{name}: {ahead[0]} puts later responses into earlier bins, where the "
                f"history encoder would read them; leave out the one or the other"
            )
    if spec.n_history < n_lags:
        raise ConfigError(
            f"session {spec.name}: the history encoder looks at {n_lags} bins, and keys_lags gives it "
            f"{spec.n_history}; set keys_lags: {{history: [1..{n_lags}]}}"
        )
