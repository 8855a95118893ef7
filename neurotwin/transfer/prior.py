"""What is known of a readout before it is fitted: likely weights, from the old sessions, and where a unit looks."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ..models.readout import (
    FactorizedReadout,
    GaussianEIReadout,
    GaussianReadout,
    PointReadout,
    pixel_centres,
)
from ..models.session_module import SessionModule
from .features import FeatureBank

__all__ = ["ANCHOR", "drive_scale", "look_for_positions", "weight_root"]

ANCHOR = 100.0
"""Nats per squared feature pixel, or radian: positions stay within about 0.1 of their start unless data insist."""

_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_MOST_BINS = 4000
_LEAST_SLOPE = 1e-3
_MOST_PLACES = 100
_WIDTHS = (1.0, 2.0, 3.0)  # of the width that the config starts from


def weight_root(others: Sequence[SessionModule], readout: nn.Module, bank: FeatureBank) -> Tensor:
    """A root R of the covariance of likely feature weights: weights are z Rᵀ with z of unit covariance, (C, C).

    Readouts of the twin's other sessions were fitted to the same features: their weights say which ones are likely.
    Their mean outer product M, each unit scaled to norm 1, is mixed with a diagonal that asks the same of every feature
    in units of its standard deviation: (U M + C D) / (U + C) for U units and C features (Ledoit & Wolf 2004 give the
    reason for such a mixture). Without old readouts of the same kind, it is the diagonal.
    """
    x = bank.thinned(_MOST_BINS).seen()
    channels = x.shape[1]
    spread = x.transpose(0, 1).flatten(1).std(dim=1)
    diagonal = torch.diag((1 / spread.clamp_min(1e-3 * float(spread.max()) + 1e-12)).square())
    weights = [
        module.readout.features.detach().float().cpu().reshape(-1, channels)
        for module in others
        if type(module.readout) is type(readout) and _weighs(module.readout, channels)
    ]
    old = torch.cat(weights) if weights else torch.zeros(0, channels)
    old = old[old.norm(dim=1) > 0]
    covariance = diagonal / diagonal.trace()
    if len(old):
        old = old / old.norm(dim=1, keepdim=True)
        share = len(old) / (len(old) + channels)
        covariance = share * (old.T @ old) / len(old) + (1 - share) * covariance
    # In units in which the drive of a unit with |z| = 1 has about variance 1.
    scale = float((torch.diagonal(covariance) * spread.square()).sum())
    values, vectors = torch.linalg.eigh(covariance.double() / max(scale, 1e-12))
    return (vectors * values.clamp_min(0).sqrt()).float()


def drive_scale(module: SessionModule, bank: FeatureBank) -> Tensor:
    """(U,) drive that changes the rate of a unit by about its mean."""
    statistics = bank.statistics()
    mean = statistics.mean.float()
    if not module.likelihood.positive:
        return statistics.variance.float().sqrt().clamp_min(1e-6)
    drive = module.link.inverse(mean.clamp_min(1e-4)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(module.link(drive).sum(), drive)
    return mean.clamp_min(1e-4) / slope.clamp_min(_LEAST_SLOPE)


def _weighs(readout: nn.Module, channels: int) -> bool:
    """Whether the last axis of a readout's weights is that of the features."""
    features = getattr(readout, "features", None)
    mixes = getattr(readout, "basis", None) is not None  # its weights are of mixtures, which differ by session
    return features is not None and not mixes and features.ndim < 4 and features.shape[-1] == channels


@torch.no_grad()
def look_for_positions(readout: nn.Module, root: Tensor, train: FeatureBank, val: FeatureBank) -> None:
    """Put each unit of a readout with positions where a ridge regression on the features there predicts it best.

    For every candidate place (the pixels of the map) and width, responses are regressed on the features pooled there,
    for all units at once. What is compared is the squared error of training bins that are left out in turn, as far as
    the mean leverage says it (generalised cross-validation, Golub, Heath & Wahba 1979), plus that of the validation
    bins. Both follow from products of features and responses, so that no residual of a bin is computed.

    A readout without positions of its own is left as it is.
    """
    if (
        not isinstance(readout, GaussianReadout | PointReadout | FactorizedReadout)
        or getattr(readout, "predictor", None) is not None
    ):
        return
    train, val = train.thinned(_MOST_BINS), val.thinned(_MOST_BINS)
    mean, deviations, weight = _standardised(train)
    y_val, w_val = _standardised(val, mean)[1:]
    (x, size), (x_val, _) = _by_pixel(train, root), _by_pixel(val, root)
    best = torch.full((len(mean),), float("inf"))
    places = torch.zeros(len(mean), 2)
    widths = torch.zeros(len(mean))
    for place, width, weights in _candidates(readout, size):
        a, b = (torch.tensordot(weights.flatten(), part, 1) for part in (x, x_val))
        error = _left_out(a, deviations, weight, b, y_val, w_val)
        better = error < best
        best = torch.where(better, error, best)
        places[better], widths[better] = place, width
    if isinstance(readout, FactorizedReadout):
        height, width = readout.mask.shape[1:]
        away = (pixel_centres(height, width) - places[:, None, None]).square().sum(-1)
        readout.mask.copy_((-0.5 * away / (widths[:, None, None] ** 2 + 0.5**2)).exp())
        return
    readout.mean.copy_(places.expand_as(readout.mean))
    if isinstance(readout, GaussianReadout):
        readout.std.copy_(widths[:, None].expand_as(readout.std))
        readout.theta.zero_()
        if isinstance(readout, GaussianEIReadout):
            readout.std[1] *= 1.5


def _standardised(bank: FeatureBank, mean: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each unit per presentation, deviations from it (N, U; 0 where not valid) and weights of rows (N,)."""
    y, mask, exposure = (None if part is None else part[:, 0] for part in bank.target())
    e = torch.ones(len(y), 1) if exposure is None else exposure.float()
    if mean is None:
        mean = bank.statistics().mean.float()
    return mean, torch.where(mask, y.float() / e - mean, 0.0), e[:, 0] / e.mean()


def _candidates(readout: nn.Module, size: tuple[int, int]) -> list[tuple[Tensor, float, Tensor]]:
    """Places (x, y), widths, and the Gaussians (H, W) there."""
    height, width = size
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    step = max(1, -(-int(sqrt(height * width)) // int(sqrt(_MOST_PLACES))))
    centres = [torch.stack([x, y]) for y in rows[step // 2 :: step] for x in columns[step // 2 :: step]]
    own = float(readout.std.detach().abs().mean()) if isinstance(readout, GaussianReadout) else 0.0
    if isinstance(readout, FactorizedReadout):
        own = 0.15 * max(height, width)  # as Gaussians start: 0.3 of half the map
    found = []
    for std in sorted({factor * own for factor in _WIDTHS}):
        for centre in centres:
            away = (rows[:, None] - centre[1]).square() + (columns[None] - centre[0]).square()
            weights = (-0.5 * away / (std**2 + 0.5**2)).flatten().softmax(0).view(height, width)
            found.append((centre, std, weights))
    return found


def _left_out(a: Tensor, y: Tensor, w: Tensor, b: Tensor, y_val: Tensor, w_val: Tensor) -> Tensor:
    """(U,) least squared error over ridges: of training rows a, each left out, and of validation rows b."""
    centre = (w[:, None] * a).sum(0) / w.sum()
    a, b = a - centre, b - centre
    values, vectors = torch.linalg.eigh((a * w[:, None]).T @ a)
    values, rotated, other = values.clamp_min(0)[:, None], a @ vectors, b @ vectors
    target, target_val = rotated.T @ (w[:, None] * y), other.T @ (w_val[:, None] * y_val)
    spread, spread_val = (w[:, None] * y.square()).sum(0), (w_val[:, None] * y_val.square()).sum(0)
    moments, errors = (other * w_val[:, None]).T @ other, []
    for ridge in _RIDGES:
        fitted = target / (values + ridge * len(a))
        missed = spread + (fitted * (values * fitted - 2 * target)).sum(0)
        leverage = float((values / (values + ridge * len(a))).sum() + 1) / len(a)
        missed_val = spread_val + (fitted * (moments @ fitted - 2 * target_val)).sum(0)
        errors.append(missed / max(1 - leverage, 1e-3) ** 2 + missed_val)
    return torch.stack(errors).amin(0)


def _by_pixel(bank: FeatureBank, root: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(HW, N, C) features of a bank in the directions of the prior, and H and W."""
    x = bank.seen()[:, :, 0]
    return (x.flatten(2).permute(2, 0, 1) @ root).contiguous(), (x.shape[2], x.shape[3])
