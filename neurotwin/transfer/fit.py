"""A session's readout, shifter, history and baseline, fitted to convergence on features of a frozen core."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..data.session import SessionError
from ..metrics.sums import Sums
from ..models.network import evaluating
from ..models.parameters import describe_parameters
from ..models.readout import GaussianEIReadout, GaussianReadout, LinearReadout, PointReadout, pooled
from ..models.session_module import SessionModule
from ..models.twin import TwinModel
from .features import FeatureBank
from .prior import look_for_positions, weight_root

__all__ = ["FitOptions", "FitReport", "fit_session", "score_bank"]

_VALUES = 1 << 25  # of features, or of features of units, that are worked on together
_POOLED = 1 << 27
_LEAST_SLOPE = 1e-3
_ANCHOR = 100.0  # nats per squared feature pixel, or radian: positions stay within about 0.1 unless data insist


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a session is fitted.

    Attributes
    ----------
    penalties
        Weights λ of ½ λ |z|², nats, strongest first. z are feature weights in units in which they are likely to have
        variance 1, see :func:`~neurotwin.transfer.prior.weight_root`.
    iterations
        Of L-BFGS for each penalty, at most.
    refinements
        Of L-BFGS with positions free, at most.
    most_bins
        Training bins that are used; of more, evenly spaced ones.
    """

    penalties: tuple[float, ...] = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
    iterations: int = 25
    refinements: int = 20
    most_bins: int = 30_000


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a fit chose.

    Attributes
    ----------
    penalty
        The weight that validation chose.
    path
        Penalty and mean validation loss, nats a response, in the order in which they were tried.
    bins
        Training bins used.
    """

    penalty: float
    path: tuple[tuple[float, float], ...]
    bins: int


def fit_session(twin: TwinModel, index: int, bank: FeatureBank, options: FitOptions | None = None) -> FitReport:
    """Fit what a session has for itself, its adapter aside, by penalised maximum likelihood on cached features.

    Positions start where :func:`~neurotwin.transfer.prior.look_for_positions` puts them. With these held, weights are
    fitted by L-BFGS for penalties from strong to weak, each from the one before, until validation has become worse
    twice. Then positions are free too. What validation prefers is kept.

    Parameters
    ----------
    twin
        The session's module is changed in place; nothing else is.
    index
        Of the session.
    bank
        Its features.
    options
        See :class:`FitOptions`.

    Raises
    ------
    SessionError
        If no fit has a finite validation loss.
    """
    options = FitOptions() if options is None else options
    train, val = bank.part("train").thinned(options.most_bins), bank.part("val").thinned(options.most_bins)
    module = twin.per_session[index]
    others = [m for i, m in enumerate(twin.per_session) if i != index]
    with torch.enable_grad(), evaluating(twin):
        module.initialise(train.statistics())
        root = weight_root(others, module.readout, train)
        look_for_positions(module.readout, root, train, val)
        problem = _Problem(module, root, train, val)
        problem.follow(options.penalties, options.iterations, moving=False)
        if problem.moves:
            problem.follow((problem.penalty,), options.refinements, moving=True)
            problem.follow((problem.penalty * 2, problem.penalty / 2), options.iterations, moving=False)
        problem.restore()
    return FitReport(penalty=problem.penalty, path=tuple(problem.path), bins=len(train))


@torch.no_grad()
def score_bank(module: SessionModule, bank: FeatureBank) -> Sums:
    """Sums of the predictions of a session on rows of cached features, from which every figure follows."""
    sums = Sums(module.likelihood)
    for part in _parts(bank, module):
        rates = module(bank.seen(part), bank.behavior(part), bank.history(part))
        sums.update(rates, *bank.target(part))
    return sums


def _parts(bank: FeatureBank, module: SessionModule) -> list[slice]:
    """Slices of rows that fit in memory."""
    each = max(int(np.prod(bank.features.shape[1:])), module.likelihood.n_units * bank.features.shape[1], 1)
    size = max(1, _VALUES // each)
    return [slice(first, min(first + size, len(bank))) for first in range(0, len(bank), size)]


class _Problem:
    """The loss of one session as a function of its parameters, and the best of them so far."""

    def __init__(self, module: SessionModule, root: Tensor, train: FeatureBank, val: FeatureBank) -> None:
        basis = getattr(module.readout, "basis", None)
        self.mixes = basis is not None
        if self.mixes:  # the weights are of mixtures of features, which are fitted too
            root = torch.eye(module.readout.features.shape[-1])
        features = getattr(module.readout, "features", None)
        if features is not None and features.ndim == 4:  # a weight for each pixel: together they vary as one weight
            root = root / sqrt(features[0, 0].numel())
        self.module, self.train, self.val, self.root = module, train, val, root
        self.path: list[tuple[float, float]] = []
        self.best, self.penalty, self.kept = float("inf"), 0.0, {}
        infos = [info for info in describe_parameters(module) if info.part != "adapter"]
        self.axis = None if features is None else (1 if features.ndim == 4 else features.ndim - 1)
        self.scale = self._scale()
        self.z = self._start(features)
        others = [i for i in infos if i.parameter is not features]
        self.free = [i.parameter for i in others if i.kind != "position"]
        # A basis that shrank along with its weights would end, with them, at 0, where neither has a gradient.
        self.shrunk = [i.parameter for i in others if i.decays and i.parameter is not basis]
        self.placed = [i.parameter for i in others if i.kind == "position"]
        self.moves = bool(self.placed)
        self.anchors = [parameter.detach().clone() for parameter in self.placed]
        self.counts = {id(b): max(1, int(b.target()[1].sum())) for b in (train, val)}
        self._pooled: dict[int, Tensor] = {}

    def _scale(self) -> Tensor:
        """(U,) drive that changes the rate of a unit by about its mean."""
        statistics = self.train.statistics()
        mean = statistics.mean.float()
        if not self.module.likelihood.positive:
            return statistics.variance.float().sqrt().clamp_min(1e-6)
        drive = self.module.link.inverse(mean.clamp_min(1e-4)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.module.link(drive).sum(), drive)
        return mean.clamp_min(1e-4) / slope.clamp_min(_LEAST_SLOPE)

    def _start(self, features: Tensor | None) -> Tensor:
        if features is None:
            return torch.zeros(0, requires_grad=True)
        plain = isinstance(self.module.readout, GaussianReadout | PointReadout | LinearReadout)
        if self.mixes or not plain or isinstance(self.module.readout, GaussianEIReadout):
            # At 0 such a readout has no gradient.
            rooted = torch.linalg.pinv(self.root)
            z = torch.tensordot(features.detach() / self._units(), rooted, ([self.axis], [1])).movedim(-1, self.axis)
            return z.contiguous().requires_grad_()
        return torch.zeros_like(features, requires_grad=True)

    def _units(self) -> Tensor:
        """`scale` along the axis of units of the feature weights."""
        features = self.module.readout.features
        axis = 1 if isinstance(self.module.readout, GaussianEIReadout) else 0
        return self.scale.view([-1 if i == axis else 1 for i in range(features.ndim)])

    def weights(self) -> Tensor:
        """The feature weights that z stands for."""
        return self._units() * torch.tensordot(self.z, self.root, ([self.axis], [1])).movedim(-1, self.axis)

    def loss(self, bank: FeatureBank, backward: Callable[[Tensor], None] | None, moving: bool) -> float:
        """Mean negative log likelihood of a bank, nats a response; gradients pass through `backward` part by part."""
        total, count = 0.0, self.counts[id(bank)]
        for part in _parts(bank, self.module):
            rates = self.module.rate(self._drive(bank, part, moving))
            loss = self.module.likelihood.nll(rates, *bank.target(part)) / count
            if backward is not None:
                backward(loss)
            total += float(loss.detach())
        return total

    def _drive(self, bank: FeatureBank, part: slice, moving: bool) -> Tensor:
        module, readout = self.module, self.module.readout
        changed = {} if self.axis is None else {"features": self.weights()}
        if not moving and (known := self._pool(bank)) is not None:
            weights = changed["features"] @ readout.basis if self.mixes else changed["features"]
            drive = (known[part] * weights).sum(-1)
            drive = drive if readout.bias is None else drive + readout.bias
        elif module.shifter is not None:
            shift = module.shifter(bank.behavior(part))
            drive = functional_call(readout, changed, (bank.seen(part), shift))
        else:
            drive = functional_call(readout, changed, (bank.seen(part),))
        if module.history_encoder is not None:
            before = module.history_encoder.n_lags + 1
            drive = drive + module.history_encoder(bank.history(part)[:, -before:-1].to(drive.dtype))
        return drive

    def _pool(self, bank: FeatureBank) -> Tensor | None:
        """(N, 1, U, C) features under the Gaussians where they are now; None where they move or take too much room."""
        module, units = self.module, self.module.likelihood.n_units
        size = len(bank) * units * bank.features.shape[1]
        if type(module.readout) is not GaussianReadout or module.shifter is not None or size > _POOLED:
            return None
        if id(bank) not in self._pooled:
            with torch.no_grad():
                weights = module.readout.weights()
                parts = [pooled(bank.seen(part), weights) for part in _parts(bank, module)]
            self._pooled[id(bank)] = torch.cat(parts)
        return self._pooled[id(bank)]

    def follow(self, penalties: tuple[float, ...], iterations: int, *, moving: bool) -> None:
        """Fit for one penalty after another, each from the one before; stop when validation is worse twice in turn."""
        if self.kept:
            self.restore()
        self._pooled.clear()
        worse = 0
        for penalty in penalties:
            self._descend(penalty, iterations, moving)
            with torch.no_grad():
                loss = self.loss(self.val, None, moving)
            self.path.append((penalty, loss))
            worse = 0 if loss < self.best else worse + 1
            if loss < self.best:
                self.best, self.penalty = loss, penalty
                self.kept = {id(p): p.detach().clone() for p in self._all()}
            if worse == 2:
                break
        if not self.kept:
            raise SessionError(
                f"session {self.val.prepared.name}: no fit has a finite loss on its validation part; look for values "
                "that are not finite, or far too large, in its responses and behaviour (neurotwin inspect)"
            )

    def _descend(self, penalty: float, iterations: int, moving: bool) -> None:
        leaves = [self.z, *self.free, *(self.placed if moving else [])]
        leaves = [leaf for leaf in leaves if leaf.numel()]
        optimizer = torch.optim.LBFGS(
            leaves, max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            squares = self.z.square().sum() + sum(p.square().sum() for p in self.shrunk)
            away = sum((p - at).square().sum() for p, at in zip(self.placed, self.anchors, strict=True))
            term = 0.5 * (penalty * squares + _ANCHOR * away) / self.counts[id(self.train)]
            term.backward()
            return self.loss(self.train, lambda loss: loss.backward(), moving) + float(term.detach())

        optimizer.step(closure)

    def _all(self) -> list[nn.Parameter | Tensor]:
        return [self.z, *self.free, *self.placed]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best parameters back."""
        for parameter in self._all():
            parameter.copy_(self.kept[id(parameter)])
            parameter.grad = None
        if self.axis is not None:
            self.module.readout.features.copy_(self.weights())
