"""Penalties on weights, and proximal steps after the optimizer's, as the model configuration lists them.

Layouts of weights: convolutions (O, I, T, H, W) and (O, I, H, W); features of readouts (U, C) and (U, C, H, W), with
parts (excitatory and inhibitory, or heads) (2, U, C) and (U, heads, C); masks of readouts (U, H, W).
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from neurotwin.config import ConfigError, RegularizerConfig, ScheduleConfig
from neurotwin.models.twin import SESSION_PARTS

__all__ = [
    "PENALTIES",
    "Regularizers",
    "group_lasso",
    "l1",
    "l2",
    "laplacian",
    "ortho",
    "scheduled_weight",
    "smooth_t",
    "soft_threshold",
    "step_sizes",
]


# --------------------------------------------------------------------------------------------------------------------
# Penalties: each takes a weight and returns a scalar
# --------------------------------------------------------------------------------------------------------------------


def l1(weight: Tensor) -> Tensor:
    """Sum of absolute values."""
    return weight.abs().sum()


def l2(weight: Tensor) -> Tensor:
    """Sum of squares."""
    return weight.square().sum()


def group_lasso(weight: Tensor) -> Tensor:
    """Sum over the first axis (output units, their parts, or filters) of the Euclidean norm (Yuan & Lin 2006).

    >>> group_lasso(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor(7.)
    """
    return torch.linalg.vector_norm(weight.flatten(1), dim=1).sum()


def ortho(weight: Tensor) -> Tensor:
    """Squared Frobenius norm of W Wᵀ - 1 for the filters as rows of W; of Wᵀ W - 1 where there are more rows than
    columns, so that 0 can be reached (Bansal et al. 2018)."""
    matrix = weight.flatten(1)
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return (gram - torch.eye(len(gram), dtype=weight.dtype, device=weight.device)).square().sum()


def laplacian(weight: Tensor) -> Tensor:
    """Sum of squares of the discrete Laplacian over the last two axes; constants are free, edges included.

    >>> laplacian(torch.tensor([[[[0.0, 1.0, 0.0]]]]))  # 1, -2, 1
    tensor(6.)
    """
    return (_second_difference(weight, -1) + _second_difference(weight, -2)).square().sum()


def smooth_t(weight: Tensor) -> Tensor:
    """Sum of squares of the second difference over time, axis 2; constants are free, edges included."""
    return _second_difference(weight, 2).square().sum()


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "group_lasso": group_lasso,
    "ortho": ortho,
    "laplacian": laplacian,
    "smooth_t": smooth_t,
}


def _second_difference(weight: Tensor, axis: int) -> Tensor:
    """x[i - 1] + x[i + 1] - 2 x[i] along an axis, whose ends are repeated outwards."""
    slope = weight.movedim(axis, -1).diff(dim=-1)
    return (F.pad(slope, (0, 1)) - F.pad(slope, (1, 0))).movedim(-1, axis)


# --------------------------------------------------------------------------------------------------------------------
# Schedules and proximal operators
# --------------------------------------------------------------------------------------------------------------------


def scheduled_weight(weight: float, schedule: ScheduleConfig, epoch: float) -> float:
    """The weight of a term at an epoch, counted from 0.

    ``warmup`` and ``linear_ramp``: 0 until `start_epoch`, then linear to `weight` at `end_epoch` and that from there
    on. ``linear_decay``: `start_lambda` until `start_epoch`, then linear to `weight` at `end_epoch`, and that.

    >>> ramp = ScheduleConfig(type="linear_ramp", start_epoch=2, end_epoch=4)
    >>> [scheduled_weight(0.5, ramp, epoch) for epoch in range(6)]
    [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]
    """
    if schedule.kind == "constant" or epoch >= schedule.end_epoch:
        return weight
    first = schedule.start_lambda or 0.0
    if epoch <= schedule.start_epoch:
        return first
    done = (epoch - schedule.start_epoch) / (schedule.end_epoch - schedule.start_epoch)
    return first + (weight - first) * done


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal operator of the L1 norm: argmin over x of threshold |x| + (x - w)² / 2, element by element."""
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


def step_sizes(optimizer: Optimizer, group: Mapping, parameter: Tensor) -> Tensor | float:
    """The step that the optimizer takes for a unit (averaged) gradient, element by element.

    For Adam and its relatives lr / (sqrt(v_hat) + eps), with v_hat the bias-corrected second moment (Kingma & Ba 2015);
    else lr.
    """
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return group["lr"]
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    step = torch.as_tensor(state["step"], dtype=torch.float64)  # a float32 power would lose half the digits
    corrected = second / (1 - group["betas"][1] ** step)
    return group["lr"] / (corrected.sqrt() + group["eps"])


# --------------------------------------------------------------------------------------------------------------------
# All terms of a model
# --------------------------------------------------------------------------------------------------------------------


class Regularizers:
    """The terms of ``regularization`` and the parameters that each applies to.

    Parameters
    ----------
    configs
        The terms.
    named_parameters
        Names and parameters of the model.

    Attributes
    ----------
    no_decay
        Names of parameters with an l2 or group_lasso term: they get no weight decay besides.

    Raises
    ------
    ConfigError
        If a pattern matches no parameter, or a term makes no sense for the shape of one that it matches.

    Notes
    -----
    **Sessions.** Parameters of one session (``readouts.N``, ``adapters.N``, ...) are penalised only in steps that hold
    data of that session, so that no others get a gradient. With A of all S sessions in a step their penalties (and
    proximal_l1) weigh S / A times as much: where sessions are drawn alike, the sum then equals, in expectation over
    steps, that over all sessions, for any batch size.

    **Clamps** bind the parameter itself, so a schedule does not scale them: with ``warmup`` or ``linear_ramp`` they
    hold from `start_epoch` on, with ``linear_decay`` the bound goes from `start_lambda` to lambda.
    ``proximal_clamp`` keeps a weight in [-lambda, lambda], ``proximal_clamp_min`` at lambda or above and
    ``proximal_clamp_positive`` at 0 or above, whatever its lambda.

    Examples
    --------
    >>> model = nn.ModuleDict({"readouts": nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])})
    >>> for readout in model["readouts"]:
    ...     _ = nn.init.constant_(readout.weight, 0.5)
    >>> config = RegularizerConfig(**{"name": "sparse", "type": "l1", "lambda": 0.1, "apply_to": ["readouts/weight"]})
    >>> regularizers = Regularizers([config], model.named_parameters())
    >>> total, terms = regularizers.penalty(epoch=0)
    >>> round(total.item(), 6), round(regularizers.penalty(epoch=0, active=[1])[0].item(), 6)
    (0.2, 0.2)
    """

    def __init__(
        self,
        configs: Sequence[RegularizerConfig],
        named_parameters: Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]],
    ) -> None:
        parameters = dict(named_parameters)
        self._terms = [(config, _matching(config, parameters)) for config in configs]
        for config, matched in self._terms:
            for name, parameter in matched.items():
                _check(config, name, parameter)
        self.no_decay = frozenset(
            name for config, matched in self._terms if config.type in ("l2", "group_lasso") for name in matched
        )
        self._any = next(iter(parameters.values()), torch.zeros(()))
        self._sessions: dict[int, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if (session := _session_of(name)) is not None:
                self._sessions.setdefault(session, []).append(parameter)

    def penalty(self, epoch: float, active: Iterable[int] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all penalties, and what each term (by name, detached) adds to it.

        Parameters
        ----------
        epoch
            Epoch from 0; may be a fraction.
        active
            Sessions in the step, on any process; None: all.
        """
        present = self._sessions.keys() if active is None else self._sessions.keys() & set(active)
        total, values = self._any.new_zeros(()), {}
        for config, matched in self._terms:
            if config.type not in PENALTIES:
                continue
            value = self._any.new_zeros(())
            weight = scheduled_weight(config.weight, config.schedule, epoch)
            for name, parameter in matched.items() if weight > 0 else ():
                scale = self._scale(name, present)
                if parameter.requires_grad and scale > 0:
                    with torch.autocast(parameter.device.type, enabled=False):
                        value = value + weight * scale * PENALTIES[config.type](_groups_first(name, parameter))
            total = total + value
            values[config.name] = value.detach()
        return total, values

    @torch.no_grad()
    def proximal_step(self, optimizer: Optimizer, epoch: float) -> None:
        """Apply the proximal terms, once to each parameter that `optimizer` has just stepped.

        A parameter without a gradient was not stepped and is left alone; so call this before gradients are cleared.
        """
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        stepped = {k for k, own in self._sessions.items() if any(parameter.grad is not None for parameter in own)}
        for config, matched in self._terms:
            if config.type in PENALTIES or not _holds(config, epoch):
                continue
            weight = scheduled_weight(config.weight, config.schedule, epoch)
            bound = weight if config.schedule.kind == "linear_decay" else config.weight
            for name, parameter in matched.items():
                if parameter.grad is None or parameter not in groups:
                    continue
                if config.type == "proximal_l1":
                    sizes = step_sizes(optimizer, groups[parameter], parameter)
                    parameter.copy_(soft_threshold(parameter, weight * self._scale(name, stepped) * sizes))
                elif config.type == "proximal_clamp":
                    parameter.clamp_(-bound, bound)
                else:
                    parameter.clamp_(min=bound if config.type == "proximal_clamp_min" else 0.0)

    def _scale(self, name: str, present: Collection[int]) -> float:
        """Weight of a parameter in a step with data of the sessions `present`."""
        session = _session_of(name)
        if session is None:
            return 1.0
        return len(self._sessions) / len(present) if session in present else 0.0


def _holds(config: RegularizerConfig, epoch: float) -> bool:
    """Whether a proximal term is on."""
    return config.schedule.kind not in ("warmup", "linear_ramp") or epoch >= config.schedule.start_epoch


def _session_of(name: str) -> int | None:
    """Index of the session that a parameter belongs to; None for shared ones."""
    match = re.search(rf"(?:^|\.)(?:{'|'.join(SESSION_PARTS)})\.(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def _groups_first(name: str, parameter: Tensor) -> Tensor:
    """A weight with its output units or filters on the first axis; a readout's parts count as units of their own."""
    return parameter.flatten(0, 1) if name.endswith("features") and parameter.ndim == 3 else parameter


def _matching(config: RegularizerConfig, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for pattern in config.apply_to:
        parts = pattern.split("/")
        matched = {name: p for name, p in parameters.items() if all(part in name for part in parts)}
        if not matched or not all(parts):
            close = ", ".join(difflib.get_close_matches(pattern.replace("/", "."), parameters, n=3, cutoff=0))
            raise ConfigError(
                f"regularization {config.name!r}: apply_to {pattern!r} matches no parameter; nearest: {close}"
            )
        found |= matched
    return found


def _check(config: RegularizerConfig, name: str, parameter: Tensor) -> None:
    """Raise a ConfigError where a term makes no sense for a parameter."""
    shape, kind = tuple(parameter.shape), config.type
    fault = None
    if kind in ("group_lasso", "ortho") and len(shape) < 2:
        fault = "needs output units or filters on the first axis and something to group or compare along the others"
    elif kind == "laplacian" and (len(shape) < (3 if name.endswith("mask") else 4) or max(shape[-2:]) < 2):
        fault = "needs space (the last two axes of a convolution, of linear features or of a mask) of several pixels"
    elif kind == "smooth_t" and (len(shape) != 5 or shape[2] < 2):
        fault = "needs time (axis 2 of a convolution) of several bins"
    elif kind == "proximal_clamp" and config.weight == 0:
        fault = "would hold at 0; lambda is the bound"
    if fault:
        raise ConfigError(
            f"regularization {config.name!r}: {kind} {fault} (parameter {name}, shape {shape}); change apply_to"
        )
