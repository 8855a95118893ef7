"""A session's parameters, fitted by L-BFGS: slower than Newton's method, and for every readout and model."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.parameters import describe_parameters
from ..models.readout import GaussianEIReadout, GaussianReadout, LinearReadout, PointReadout, pooled
from ..models.session_module import SessionModule
from .features import FeatureBank, row_parts
from .prior import ANCHOR, drive_scale

__all__ = ["LbfgsFitter"]

_POOLED = 1 << 27


class LbfgsFitter:
    """The parameters of a session, fitted by L-BFGS.

    Parameters
    ----------
    module
        The session's parts; its parameters are changed in place.
    root
        (C, C) root of the prior of feature weights.
    train, val
        Cached features to fit to, and to choose by.

    Attributes
    ----------
    moves
        Whether the readout has positions.
    """

    def __init__(self, module: SessionModule, root: Tensor, train: FeatureBank, val: FeatureBank) -> None:
        basis = getattr(module.readout, "basis", None)
        self.mixes = basis is not None
        if self.mixes:  # the weights are of mixtures of features, which are fitted too
            root = torch.eye(module.readout.features.shape[-1])
        features = getattr(module.readout, "features", None)
        if features is not None and features.ndim == 4:  # a weight for each pixel: together they vary as one weight
            root = root / sqrt(features[0, 0].numel())
        self.module, self.train, self.val, self.root = module, train, val, root
        infos = [info for info in describe_parameters(module) if info.part != "adapter"]
        self.axis = None if features is None else (1 if features.ndim == 4 else features.ndim - 1)
        self.scale = drive_scale(module, train)
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

    def _loss(self, bank: FeatureBank, backward: Callable[[Tensor], None] | None, moving: bool) -> float:
        """Mean negative log likelihood of a bank, nats a response; gradients pass through `backward` part by part."""
        total, count = 0.0, self.counts[id(bank)]
        for part in row_parts(bank, self.module):
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
                parts = [pooled(bank.seen(part), weights) for part in row_parts(bank, module)]
            self._pooled[id(bank)] = torch.cat(parts)
        return self._pooled[id(bank)]

    def descend(self, penalty: float, iterations: int, *, moving: bool) -> None:
        """Fit with one penalty from where the parameters are; with `moving`, positions too."""
        self._pooled.clear()
        leaves = [self.z, *self.free, *(self.placed if moving else [])]
        leaves = [leaf for leaf in leaves if leaf.numel()]
        optimizer = torch.optim.LBFGS(
            leaves, max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            squares = self.z.square().sum() + sum(p.square().sum() for p in self.shrunk)
            away = sum((p - at).square().sum() for p, at in zip(self.placed, self.anchors, strict=True))
            term = 0.5 * (penalty * squares + ANCHOR * away) / self.counts[id(self.train)]
            term.backward()
            return self._loss(self.train, lambda loss: loss.backward(), moving) + float(term.detach())

        optimizer.step(closure)

    @torch.no_grad()
    def validation(self, moving: bool) -> float:
        """Mean loss of the validation part where the parameters are, nats a response."""
        return self._loss(self.val, None, moving)

    def state(self) -> list[Tensor]:
        """Copies of all that is fitted."""
        return [parameter.detach().clone() for parameter in self._all()]

    @torch.no_grad()
    def put(self, state: list[Tensor]) -> None:
        """Set the module to a state."""
        self._pooled.clear()
        for parameter, value in zip(self._all(), state, strict=True):
            parameter.copy_(value)
            parameter.grad = None
        if self.axis is not None:
            self.module.readout.features.copy_(self.weights())

    def _all(self) -> list[nn.Parameter | Tensor]:
        return [self.z, *self.free, *self.placed]
