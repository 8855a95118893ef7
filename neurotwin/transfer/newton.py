"""Readouts with one Gaussian a unit, fitted by Newton's method: units do not depend on each other, so all step at once.

With its Gaussian held, the drive of a unit is linear in its weights and bias; with the Gaussian free too, it is made
linear in its position, widths and angle where they are (Gauss and Newton). Of each unit, the loss, its gradient and its
curvature are sums over bins, which are gone through block by block. Nothing of the size bins × units is kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp
from torch.func import functional_call

from ..models.parameters import describe_parameters
from ..models.readout import GaussianReadout
from ..models.session_module import SessionModule
from .features import FeatureBank
from .prior import ANCHOR, drive_scale

__all__ = ["NewtonFitter"]

_BLOCK = 1 << 22  # values of features, times units, that are worked on together
_SETTLED = 0.05  # nats a unit that a step is expected to gain, below which it is not worth a pass
_FEWER = 4  # the first steps that move Gaussians are taken on every fourth bin
_DAMPING = 1e-4
_PLACED = ("mean", "std", "theta")


class NewtonFitter:
    r"""The units of a session, fitted by penalised Newton steps.

    The loss of a unit is −log L + ½ λ |z|² + ½ a |p − p₀|², with feature weights s R z (s the scale of its drive, R the
    root of the prior) and p what its Gaussian has. A step is (H + μ diag H)⁻¹ g, where the damping μ of a unit grows
    while its steps make its loss worse (Levenberg 1944, Marquardt 1963).

    Parameters
    ----------
    module
        The session's parts; its parameters are changed in place.
    root
        (C, C) R.
    train, val
        Cached features to fit to, and to choose by.
    """

    moves = True

    def __init__(self, module: SessionModule, root: Tensor, train: FeatureBank, val: FeatureBank) -> None:
        self.module, self.readout, self.root = module, module.readout, root
        self.train, self.val, self.scale = train, val, drive_scale(module, train)
        scale = self.scale
        named = {"mean": self.readout.mean, "std": self.readout.std, "theta": self.readout.theta}
        self.placed = {name: value.detach().clone() for name, value in named.items()}
        known = {id(p) for p in (*named.values(), self.readout.features, self.readout.bias)}
        self.own = [info.parameter for info in _session_parameters(module) if id(info.parameter) not in known]
        self.anchor = torch.cat([value.reshape(len(scale), -1) for value in self.placed.values()], dim=1)
        channels = root.shape[0]
        n_bias = self.readout.bias is not None
        z = torch.zeros(len(scale), channels)
        rest = [self.readout.bias.detach()[:, None]] if n_bias else []
        self.at = torch.cat([z, *rest, self.anchor, *(p.detach()[:, None] for p in self.own)], dim=1)
        self.parts = _slices(weights=channels, bias=int(n_bias), places=self.anchor.shape[1], own=len(self.own))
        self._known: tuple[bool, Tensor, Tensor, Tensor] | None = None

    @staticmethod
    def suits(module: SessionModule) -> bool:
        """Whether all that a session fits is one Gaussian a unit, its weights, and constants of its likelihood.

        Such a constant, as a dispersion, says nothing of the mean, so that it may have a step of its own. What bends
        the rate, as a baseline, trades with the weights, and is left to L-BFGS.
        """
        readout = module.readout
        if type(readout) is not GaussianReadout or readout.basis is not None or readout.retinotopy is not None:
            return False
        units = (module.likelihood.n_units,)
        return module.shifter is None and all(
            info.part == "readout" or (info.part == "likelihood" and info.parameter.shape == units)
            for info in _session_parameters(module)
        )

    @torch.no_grad()
    def put(self, state: Tensor) -> None:
        """Set the module to a state."""
        self.at, self._known = state.clone(), None
        self._write(state)

    def state(self) -> Tensor:
        """A copy of all that is fitted, (U, P)."""
        return self.at.clone()

    @torch.no_grad()
    def _write(self, values: Tensor) -> None:
        weights, bias, places, own = (values[:, part] for part in self.parts.values())
        self.readout.features.copy_(self.scale[:, None] * weights @ self.root.T)
        if self.readout.bias is not None:
            self.readout.bias.copy_(bias[:, 0])
        for parameter, value in zip(self.own, own.T, strict=True):
            parameter.copy_(value)
        widths = [value[0].numel() for value in self.placed.values()]
        for name, value in zip(self.placed, places.split(widths, dim=1), strict=True):
            parameter = getattr(self.readout, name)
            parameter.copy_(value.reshape(parameter.shape))

    def descend(self, penalty: float, steps: int, *, moving: bool) -> None:
        """Take steps with one penalty from where the units are; with `moving`, of their Gaussians too."""
        if moving:
            self._descend(self.train.thinned(max(1, len(self.train) // _FEWER)), penalty, steps, moving)
            self._known = None
        self._descend(self.train, penalty, steps, moving)

    def _descend(self, bank: FeatureBank, penalty: float, steps: int, moving: bool) -> None:
        if self._known is None or self._known[0] < moving:
            self._known = (moving, *self._evaluate(bank, self.at, moving))
        loss, gradient, hessian = self._known[1:]
        free = self._free(moving)
        damping = torch.full((len(loss),), _DAMPING)
        for _ in range(steps):
            step = self._step(gradient, hessian, damping, penalty, free)
            expected = 0.5 * (step * self._slope(gradient, self.at, penalty)).sum(dim=1)
            if float(expected.mean()) < _SETTLED:
                break
            trial = self.at - step
            found = self._evaluate(bank, trial, moving)
            before, after = (
                value + self._penalties(at, penalty) for value, at in ((loss, self.at), (found[0], trial))
            )  # fmt: skip
            better = after <= before
            damping = torch.where(better, damping / 10, (damping * 10).clamp_max(1e6)).clamp_min(_DAMPING)
            self.at = torch.where(better[:, None], trial, self.at)
            loss, gradient, hessian = (
                torch.where(better.view(-1, *[1] * (old.ndim - 1)), new, old)
                for old, new in zip((loss, gradient, hessian), found, strict=True)
            )
        self._known = (moving, loss, gradient, hessian)
        self._write(self.at)

    def _evaluate(self, bank: FeatureBank, at: Tensor, moving: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (U,) nats, gradient (U, P) and curvature (U, P, P) of the units, penalties aside; float64.

        Of a part of the training bins, they are scaled to what all of them would give.
        """
        self._write(at)
        n_units, n = at.shape
        loss = torch.zeros(n_units, dtype=torch.float64)
        gradient, hessian = loss.new_zeros(n_units, n), loss.new_zeros(n_units, n, n)
        columns = slice(0, self.parts["places"].stop if moving else self.parts["places"].start)
        maps, slopes = self._maps(moving)
        own = range(self.parts["own"].start, self.parts["own"].stop)
        for rows in _blocks(bank, n_units, moving):
            design, drive = self._design(bank, rows, at, maps, slopes)
            terms, g, h, of_own = self._derivatives(bank, rows, drive)
            loss += terms
            gradient[:, columns] += torch.bmm(g[:, None], design)[:, 0]
            hessian[:, columns, columns] += torch.bmm((design * h[..., None]).transpose(1, 2), design)
            for index, (slope, bend) in zip(own, of_own, strict=True):
                gradient[:, index] += slope
                hessian[:, index, index] += bend
        share = len(bank) / len(self.train)
        return loss / share, gradient / share, hessian / share

    @torch.no_grad()
    def validation(self, moving: bool) -> float:
        """Mean loss of the validation part where the units are, nats a response."""
        total, count, (maps, _) = 0.0, 0, self._maps(False)
        for rows in _blocks(self.val, len(self.at), False):
            _, drive = self._design(self.val, rows, self.at, maps, None)
            total += float(self._losses(self.val, rows, drive.T[:, None]).double().sum())
            count += int(self.val.target(rows)[1].sum())
        return total / max(count, 1)

    def _design(
        self, bank: FeatureBank, rows: slice, at: Tensor, maps: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(U, n, P) what the drive of each unit changes by with its parameters, and the drive (U, n)."""
        with torch.no_grad():
            z = at[:, self.parts["weights"]]
            x = bank.seen(rows)[:, :, 0].flatten(2)  # (n, C, HW)
            n, channels, pixels = x.shape
            x = (x.permute(2, 0, 1).reshape(-1, channels) @ self.root).view(pixels, n, channels)
            seen = ((self.scale[:, None] * maps) @ x.flatten(1)).view(-1, n, channels)
            parts, drive = [seen], torch.bmm(seen, z[..., None])[..., 0]
            if self.readout.bias is not None:
                parts.append(torch.ones(*drive.shape, 1))
                drive = drive + at[:, self.parts["bias"]]
            if slopes is not None:
                at_pixels = (self.scale[:, None] * z) @ x.transpose(0, 1).flatten(0, 1).T  # what a unit sees there
                parts.append(torch.bmm(at_pixels.view(-1, n, pixels), slopes))
            return torch.cat(parts, dim=-1), drive

    def _maps(self, moving: bool) -> tuple[Tensor, Tensor | None]:
        """The Gaussians (U, HW), and what they change by with each number of their position, (U, HW, 5)."""
        maps = self.readout.weights().detach().flatten(1)
        if not moving:
            return maps, None
        gaussians = _Gaussians(self.readout)
        values = tuple(getattr(self.readout, name).detach() for name in _PLACED)
        slopes = []
        for number, value in enumerate(values):
            for place in range(value[0].numel()):
                tangents = [torch.zeros_like(other) for other in values]
                tangents[number].view(len(value), -1)[:, place] = 1
                slopes.append(jvp(gaussians.at, values, tuple(tangents))[1].flatten(1))
        return maps, torch.stack(slopes, dim=-1)

    def _losses(self, bank: FeatureBank, rows: slice, drive: Tensor) -> Tensor:
        return self.module.likelihood.losses(self.module.rate(drive), *bank.target(rows))

    def _derivatives(
        self, bank: FeatureBank, rows: slice, drive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]]:
        """Losses (U,) of some bins, their derivatives by the drive (U, n), and by each constant of the units (U,)."""
        drive = drive.T[:, None].contiguous().requires_grad_()
        given = [drive, *self.own]
        terms = self._losses(bank, rows, drive)
        first = torch.autograd.grad(terms.sum(), given, create_graph=True, materialize_grads=True)
        second = [
            torch.autograd.grad(slope.sum(), value, retain_graph=True, materialize_grads=True)[0]
            if slope.requires_grad else torch.zeros_like(value)
            for slope, value in zip(first, given, strict=True)
        ]  # fmt: skip
        first = [slope.detach() for slope in first]
        second = [bend.clamp_min(0) for bend in second]
        losses = terms.detach().double().sum(dim=(0, 1))
        return losses, first[0][:, 0].T, second[0][:, 0].T, list(zip(first[1:], second[1:], strict=True))

    def _free(self, moving: bool) -> Tensor:
        """Indices of the parameters that are fitted."""
        places = self.parts["places"]
        return torch.tensor([i for i in range(self.at.shape[1]) if moving or not places.start <= i < places.stop])

    def _slope(self, gradient: Tensor, at: Tensor, penalty: float) -> Tensor:
        """The gradient with penalties, (U, P)."""
        slope = gradient.clone()
        slope[:, self.parts["weights"]] += penalty * at[:, self.parts["weights"]]
        slope[:, self.parts["places"]] += ANCHOR * (at[:, self.parts["places"]] - self.anchor)
        return slope

    def _penalties(self, at: Tensor, penalty: float) -> Tensor:
        away = (at[:, self.parts["places"]] - self.anchor).double().square().sum(dim=1)
        return 0.5 * (penalty * at[:, self.parts["weights"]].double().square().sum(dim=1) + ANCHOR * away)

    def _step(self, gradient: Tensor, hessian: Tensor, damping: Tensor, penalty: float, free: Tensor) -> Tensor:
        added = torch.zeros(self.at.shape[1], dtype=torch.float64)
        added[self.parts["weights"]], added[self.parts["places"]] = penalty, ANCHOR
        curvature = (hessian + torch.diag(added))[:, free[:, None], free]
        diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
        extra = damping[:, None] * diagonal + 1e-8 * diagonal.amax(dim=1, keepdim=True).clamp_min(1e-12)
        slope = self._slope(gradient, self.at, penalty)[:, free]
        step = torch.zeros_like(self.at)
        step[:, free] = torch.linalg.solve(curvature + torch.diag_embed(extra), slope).float()
        step[:, self.parts["own"]].clamp_(-1, 1)  # logarithms, whose loss may be flat
        return step


class _Gaussians(nn.Module):
    """The Gaussians of a readout as a function of where they are."""

    def __init__(self, readout: GaussianReadout) -> None:
        super().__init__()
        self.readout = readout

    def forward(self) -> Tensor:
        return self.readout.weights()

    def at(self, mean: Tensor, std: Tensor, theta: Tensor) -> Tensor:
        """The Gaussians (U, H, W) for given positions."""
        return functional_call(self, {"readout.mean": mean, "readout.std": std, "readout.theta": theta}, ())


def _session_parameters(module: SessionModule) -> list:
    infos = (info for info in describe_parameters(module) if info.part != "adapter")
    return [info for info in infos if info.parameter.requires_grad]


def _slices(**sizes: int) -> dict[str, slice]:
    found, start = {}, 0
    for name, size in sizes.items():
        found[name], start = slice(start, start + size), start + size
    return found


def _blocks(bank: FeatureBank, n_units: int, moving: bool) -> list[slice]:
    """Slices of rows for which what all units see fits in memory."""
    _, channels, height, width = bank.features.shape
    each = max(channels, height * width if moving else 0)
    size = max(1, _BLOCK // (n_units * each))
    return [slice(first, min(first + size, len(bank))) for first in range(0, len(bank), size)]
