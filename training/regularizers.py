"""Penalties on weights, and proximal steps after the optimizer's, as the model configuration lists them.

What each of them is stands in :mod:`neurotwin.models.penalties`.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from neurotwin.config import ConfigError, RegularizerConfig, define
from neurotwin.models.parameters import ParameterInfo
from neurotwin.models.penalties import Proximal, scheduled_weight

__all__ = ["Regularizers", "step_sizes"]


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


class Regularizers:
    """The terms of ``regularization`` and the parameters that each applies to.

    Parameters
    ----------
    configs
        The terms.
    parameters
        Of the model (:func:`~neurotwin.models.parameters.describe_parameters`).

    Attributes
    ----------
    names
        Under which the terms are logged.
    no_decay
        Names of parameters with an l2 or group_lasso term: they get no weight decay besides.

    Raises
    ------
    ConfigError
        If a pattern matches no parameter, or a term makes no sense for the shape of one that it matches.

    Notes
    -----
    **Sessions.** Parameters of one session (``readouts.N``, ``adapters.N``, ...) are penalised only in
    steps that hold data of that session, so that other sessions get no gradient. A small batch holds few sessions and
    would penalise each of them rarely. Therefore, with A of all S sessions in a step, their penalties (and proximal_l1)
    are multiplied by S / A. Where sessions are drawn equally often, the mean over steps is then the sum over all
    sessions, for any batch size.

    **Clamps** bind the parameter itself, so a schedule does not scale them: with ``warmup`` or ``linear_ramp`` they
    hold from `start_epoch` on, with ``linear_decay`` the bound goes from `start_lambda` to lambda.

    Examples
    --------
    >>> weights = [torch.nn.Parameter(torch.full((1, 2), 0.5)) for _ in range(2)]
    >>> infos = [ParameterInfo(f"readouts.{i}.features", w, "features", i, "readout") for i, w in enumerate(weights)]
    >>> config = RegularizerConfig(**{"name": "sparse", "type": "l1", "lambda": 0.1, "apply_to": ["readouts/features"]})
    >>> regularizers = Regularizers([config], infos)
    >>> total, terms = regularizers.penalty(epoch=0)
    >>> round(total.item(), 6), round(regularizers.penalty(epoch=0, active=[1])[0].item(), 6)
    (0.2, 0.2)
    """

    def __init__(self, configs: Sequence[RegularizerConfig], parameters: Iterable[ParameterInfo]) -> None:
        known = {info.name: info for info in parameters}
        self.names = tuple(config.name for config in configs)
        self._terms = [(config, define("penalty", config.type), _matching(config, known)) for config in configs]
        for config, kind, matched in self._terms:
            for info in matched:
                if fault := kind.fault(info, config.weight):
                    raise ConfigError(
                        f"regularization {config.name!r}: {config.type} {fault} (parameter {info.name}, shape "
                        f"{tuple(info.parameter.shape)}); change apply_to"
                    )
        self.no_decay = frozenset(info.name for _, kind, matched in self._terms if kind.shrinks for info in matched)
        for config in configs:
            scheduled_weight(config.weight, config.schedule, 0)  # what a schedule lacks is an error now, not later
        self._any = next((info.parameter for info in known.values()), torch.zeros(()))
        self._sessions: dict[int, list[Tensor]] = {}
        for info in known.values():
            if info.session is not None:
                self._sessions.setdefault(info.session, []).append(info.parameter)

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
        for config, kind, matched in self._terms:
            if issubclass(kind, Proximal):
                continue
            value = self._any.new_zeros(())
            weight = scheduled_weight(config.weight, config.schedule, epoch)
            for info in matched if weight > 0 else ():
                parameter, scale = info.parameter, self._scale(info, present)
                if parameter.requires_grad and scale > 0:
                    with torch.autocast(parameter.device.type, enabled=False):
                        value = value + weight * scale * kind.value(_units_first(info))
            total = total + value
            values[config.name] = value.detach()
        return total, values

    @torch.no_grad()
    def proximal_step(self, optimizer: Optimizer, epoch: float) -> None:
        """Apply the proximal terms, once to each parameter that `optimizer` has just stepped.

        A parameter without a gradient was not stepped and is left alone; so call this before gradients are cleared.
        """
        if not any(issubclass(kind, Proximal) for _, kind, _ in self._terms):
            return  # before the loops over all parameters, which of 1,000 sessions are many
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        stepped = {k for k, own in self._sessions.items() if any(parameter.grad is not None for parameter in own)}
        for config, kind, matched in self._terms:
            rises = define("penalty_schedule", config.schedule.kind).rises
            if not issubclass(kind, Proximal) or (rises and epoch < config.schedule.start_epoch):
                continue
            weight = scheduled_weight(config.weight, config.schedule, epoch)
            bound = config.weight if kind.is_bound and rises else weight
            for info in matched:
                parameter = info.parameter
                if parameter.grad is None or parameter not in groups:
                    continue
                sizes = step_sizes(optimizer, groups[parameter], parameter)
                scale = 1.0 if kind.is_bound else self._scale(info, stepped)
                parameter.copy_(kind.step(parameter, scale * bound, sizes))

    def _scale(self, info: ParameterInfo, present: Collection[int]) -> float:
        """Weight of a parameter in a step with data of the sessions `present`."""
        if info.session is None:
            return 1.0
        return len(self._sessions) / len(present) if info.session in present else 0.0


def _units_first(info: ParameterInfo) -> Tensor:
    """A weight with its output units or filters on the first axis; a readout's parts count as units of their own."""
    weight = info.parameter
    return weight.flatten(0, 1) if info.kind == "features" and weight.ndim == 3 else weight


def _matching(config: RegularizerConfig, parameters: Mapping[str, ParameterInfo]) -> list[ParameterInfo]:
    found: dict[str, ParameterInfo] = {}
    for pattern in config.apply_to:
        parts = pattern.split("/")
        matched = {name: info for name, info in parameters.items() if all(part in name for part in parts)}
        if not matched or not all(parts):
            close = ", ".join(difflib.get_close_matches(pattern.replace("/", "."), parameters, n=3, cutoff=0))
            raise ConfigError(
                f"regularization {config.name!r}: apply_to {pattern!r} matches no parameter; nearest: {close}"
            )
        found |= matched
    return list(found.values())
