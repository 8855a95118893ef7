"""What belongs to one session: how its frames enter, and how shared features become rates of its units."""

import torch
from torch import Tensor, nn

from ..config import ModelConfig, Part, define
from ..data.spec import SessionSpec
from ..likelihoods import Likelihood, ResponseStatistics
from ..links import Link, make_link
from .checks import check_history, check_shift
from .readout import half_size
from .stages import Maps, Stage, build, inside

__all__ = ["SessionModule"]

_LEAST_RATE = 1e-4  # a unit that is silent in training starts from here, so that it keeps a gradient


class SessionModule(nn.Module):
    """The parts of a model that one session has for itself.

    rate = link(readout(features, shift(behaviour)) + history) + baseline

    Parameters
    ----------
    config
        The model's config; the session's own may name another adapter or readout.
    spec
        The session.
    adapter
        From its frames to what the core sees (:meth:`make_adapter`).
    features
        What the core gives.
    generator
        Draws the initial weights.

    Attributes
    ----------
    adapter, readout
        Always there.
    shifter, history_encoder, baseline
        None where the config has none. The baseline is (U,), before its own activation.
    link
        From drive to rate.
    likelihood
        How responses scatter about their expectation.
    """

    kinds = {"baseline": "constant"}

    def __init__(
        self, config: ModelConfig, spec: SessionSpec, adapter: Stage, features: Maps, *, generator: torch.Generator
    ):
        super().__init__()
        self.adapter, n_units = adapter, spec.n_units
        positions = None if spec.unit_positions is None else torch.tensor(spec.unit_positions)
        self.shifter = self.history_encoder = self.baseline = None
        with inside(f"session {spec.name}"):
            part = spec.config.readout or config.readout
            self.readout = build(part, features, n_units, positions=positions, generator=generator)
            if config.shifter.type != "none":
                check_shift(part, self.readout, features)
                names = spec.behavior_names
                half = half_size(features)
                self.shifter = build(config.shifter, spec.behavior_dim, half, names, generator=generator)
        if config.history_encoder is not None:
            self.history_encoder = build(config.history_encoder, n_units, generator=generator)
            check_history(self.history_encoder.n_lags, spec)
        self.baseline_link: Link = define("link", config.baseline.activation)()
        if config.baseline.enabled:
            start = self.baseline_link.inverse(torch.tensor(config.baseline.init_value))
            self.baseline = nn.Parameter(start.expand(n_units).clone())
        self.likelihood: Likelihood = define("likelihood", config.likelihood.type)(config.likelihood.params, n_units)
        if spec.response_range is not None:
            self.likelihood.check(spec.response_range[0], spec.whole_responses, spec.name, spec.exposed)
        self.link = make_link(
            config.output_activation.type, config.output_activation.params, positive=self.likelihood.positive,
            default=self.likelihood.default_link, n_units=n_units,
        )  # fmt: skip

    @staticmethod
    def make_adapter(config: ModelConfig, spec: SessionSpec, *, generator: torch.Generator) -> Stage:
        """The session's adapter, which is made before the core, since it decides what the core sees."""
        part: Part = spec.config.adapter or config.adapter
        frames = Maps(*spec.frame_shape, bin_rate=spec.bin_rate, axes=spec.axes)
        return build(part, frames, generator=generator)

    @property
    def like(self) -> Tensor:
        """A parameter: the type and device of what the session's rates are computed with."""
        return next(self.readout.parameters())

    def drive(self, x: Tensor, behavior: Tensor | None = None) -> Tensor:
        """What drives the units (B, L, U), history aside, from features (B, C, L, H, W).

        The behaviour (B, T, K) ends with the features; it is looked at by a shifter alone.
        """
        if self.shifter is None:
            return self.readout(x)
        gaze = behavior[:, behavior.shape[1] - x.shape[2] :]
        return self.readout(x, self.shifter(gaze.to(self.like.dtype)))

    def rate(self, drive: Tensor) -> Tensor:
        """Expected response per bin and presentation, from all that drives the units."""
        rate = self.link(drive.to(self.like.dtype))
        return rate if self.baseline is None else rate + self.baseline_link(self.baseline)

    def forward(self, x: Tensor, behavior: Tensor | None = None, history: Tensor | None = None) -> Tensor:
        """Rates (B, L, U) from features (B, C, L, H, W), behaviour and the responses (B, n + L, U) up to each bin."""
        drive = self.drive(x, behavior)
        if self.history_encoder is not None:
            before = self.history_encoder.n_lags + drive.shape[1]
            # The response of a bin is not among what predicts it.
            drive = drive + self.history_encoder(history[:, -before:-1].to(drive.dtype))
        return self.rate(drive)

    @torch.no_grad()
    def initialise(self, statistics: ResponseStatistics) -> None:
        """Start from the training responses: each unit at its mean, and the likelihood's own parameters."""
        self.likelihood.initialise(statistics)
        if getattr(self.readout, "bias", None) is None:
            return
        rate = torch.as_tensor(statistics.mean).to(self.readout.bias.device, torch.float64)
        if self.baseline is not None:
            rate = rate - self.baseline_link(self.baseline)
        self.readout.bias.copy_(self.link.inverse(rate.clamp_min(_LEAST_RATE) if self.link.positive else rate))
