"""A session's readout, shifter, history and baseline, fitted to convergence on features of a frozen core."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.session import SessionError
from ..metrics.sums import Sums
from ..models.network import evaluating
from ..models.session_module import SessionModule
from ..models.twin import TwinModel
from .features import FeatureBank, row_parts
from .lbfgs import LbfgsFitter
from .newton import NewtonFitter
from .prior import look_for_positions, weight_root

__all__ = ["FitOptions", "FitReport", "fit_session", "score_bank"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a session is fitted.

    Attributes
    ----------
    penalties
        Weights λ of ½ λ |z|², nats, strongest first. z are feature weights in units in which they are likely to have
        variance 1, see :func:`~neurotwin.transfer.prior.weight_root`.
    iterations
        Steps for each penalty, at most: of Newton's method where it suits the model, else of L-BFGS.
    refinements
        Steps with positions free, at most.
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
    fitted for penalties from strong to weak, each from the one before, until validation has become worse twice. Then
    positions are free too. What validation prefers is kept.

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
    train = bank.part("train").thinned(options.most_bins)
    val = bank.part("val").thinned(max(1, options.most_bins // 3))
    module = twin.per_session[index]
    others = [m for i, m in enumerate(twin.per_session) if i != index]
    with torch.enable_grad(), evaluating(twin):
        module.initialise(train.statistics())
        root = weight_root(others, module.readout, train)
        look_for_positions(module.readout, root, train, val)
        fitter = (NewtonFitter if NewtonFitter.suits(module) else LbfgsFitter)(module, root, train, val)
        path = _Path(fitter, bank.prepared.name)
        path.follow(options.penalties, options.iterations, moving=False)
        if fitter.moves:
            path.follow((path.penalty,), options.refinements, moving=True)
            path.follow((path.penalty * 2, path.penalty / 2), options.iterations, moving=False)
        fitter.put(path.kept)
    return FitReport(penalty=path.penalty, path=tuple(path.tried), bins=len(train))


@torch.no_grad()
def score_bank(module: SessionModule, bank: FeatureBank) -> Sums:
    """Sums of the predictions of a session on rows of cached features, from which every figure follows."""
    sums = Sums(module.likelihood)
    for part in row_parts(bank, module):
        rates = module(bank.seen(part), bank.behavior(part), bank.history(part))
        sums.update(rates, *bank.target(part))
    return sums


class _Path:
    """Penalties that were tried one after another, and what validation likes best of what they gave."""

    def __init__(self, fitter: NewtonFitter | LbfgsFitter, session: str) -> None:
        self.fitter, self.session = fitter, session
        self.tried: list[tuple[float, float]] = []
        self.best, self.penalty, self.kept = float("inf"), 0.0, None

    def follow(self, penalties: Sequence[float], iterations: int, *, moving: bool) -> None:
        """Fit for each penalty, from the best first, then each from the one before; stop when two in turn are worse."""
        if self.kept is not None:
            self.fitter.put(self.kept)
        worse = 0
        for penalty in penalties:
            self.fitter.descend(penalty, iterations, moving=moving)
            loss = self.fitter.validation(moving)
            self.tried.append((penalty, loss))
            worse = 0 if loss < self.best else worse + 1
            if loss < self.best:
                self.best, self.penalty, self.kept = loss, penalty, self.fitter.state()
            if worse == 2:
                break
        if self.kept is None:
            raise SessionError(
                f"session {self.session}: no fit has a finite loss on its validation part; look for values that are "
                "not finite, or far too large, in its responses and behaviour (neurotwin inspect)"
            )
