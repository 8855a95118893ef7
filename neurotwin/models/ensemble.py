"""Several twins of the same units as one: the mean of their rates, and how far they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..checkpoint_file import CheckpointError
from ..clip import Clip
from ..config import define
from ..data.pictures import ShownPictures, all_shown
from ..data.spec import SessionSpec
from ..likelihoods import Likelihood
from ..tensorfile import format_fault
from .network import Member, mean_of
from .shared_sessions import EnsembleError, shared_sessions
from .twin import TwinModel

__all__ = ["ENSEMBLE_FORMAT", "Ensemble"]

ENSEMBLE_FORMAT = "neurotwin-ensemble-2"


class Ensemble(TwinModel):
    r"""Twins of the same units as one twin, which is used like any other.

    The rate is the mean over the M members, and the disagreement their standard deviation:

    .. math:: \lambda = \frac1M \sum_m \lambda_m, \qquad s = \sqrt{\frac1M \sum_m (\lambda_m - \lambda)^2}

    Responses are taken to scatter about λ as one likelihood of the members' type says. Its own parameters, such as a
    dispersion, are such that the variance at a rate is the mean of the variances that the members give it at this rate
    (:meth:`~neurotwin.likelihoods.base.Likelihood.pool`). The disagreement is no part of this variance: it says how
    little is known of the rate, and not how the responses scatter.

    Members may differ in architecture, and in the lags and behaviour variables that they see
    (:mod:`~neurotwin.models.shared_sessions`). Each carries its own recurrent state.

    Parameters
    ----------
    members
        The twins, at least one. They belong to the ensemble from then on.
    names
        What they are called in messages and in the file; default: "member 1" and so on.

    Attributes
    ----------
    networks
        The members.
    names
        Their names.

    Raises
    ------
    EnsembleError
        If the members differ in what they must share; the message names the first difference.

    Examples
    --------
    >>> from neurotwin import SessionSpec
    >>> from neurotwin.config import ModelConfig
    >>> spec = SessionSpec(
    ...     name="ada_0501", subject="ada", unit_ids=(3, 8), frame_shape=(1, 12, 12), bin_rate=60.0, n_lags=8
    ... )
    >>> temporal = [{"type": "learnable_temporal", "params": {"kernel_size": size}} for size in (4, 6)]
    >>> Ensemble([TwinModel(ModelConfig(frontend=frontend), [spec]) for frontend in temporal])
    Ensemble of 1 session, 2 units, 80 parameters: a prediction sees 6 frames of 1x12x12 at 60 Hz
    """

    def __init__(self, members: Sequence[TwinModel], names: Sequence[str] | None = None) -> None:
        if not members:
            raise EnsembleError("an ensemble needs at least one member")
        names = names or [f"member {number + 1}" for number in range(len(members))]
        # The members of an ensemble that is itself a member count one by one.
        parts = [[one.network for one in member.members] for member in members]
        named = [name for name, part in zip(names, parts, strict=True) for _ in part]
        members = [network for part in parts for network in part]
        self._begin(members, named)
        self._shared = tuple(
            shared_sessions([m.config for m in members], [m.sessions for m in members], self.names)
        )  # fmt: skip
        self._build()
        self._pool()

    def _begin(self, members: Sequence[TwinModel], names: Sequence[str]) -> None:
        nn.Module.__init__(self)  # not that of Network: what a network is made of, the members have
        self.networks, self.names = nn.ModuleList(members), tuple(names)

    def _build(self) -> None:
        """All that follows from the members and the sessions."""
        self.sessions = tuple(shared.spec for shared in self._shared)
        self.receptive_field = max(network.receptive_field for network in self.networks)
        self.is_recurrent = any(network.is_recurrent for network in self.networks)
        self.context = max(network.context for network in self.networks)
        for network in self.networks:
            if network.is_recurrent:  # its state starts with the stretch, as when it predicts alone
                network.context = self.context
        likelihood = self.networks[0].config.likelihood
        made = (define("likelihood", likelihood.type)(likelihood.params, spec.n_units) for spec in self.sessions)
        self.per_session = nn.ModuleList(_Session(one) for one in made).to(self.like)
        self.auxiliary_loss = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks whose mean rates are predicted."""
        return tuple(
            Member(
                network, tuple(shared.indices[number] for shared in self._shared),
                tuple(shared.columns[number] for shared in self._shared),
            )
            for number, network in enumerate(self.networks)
        )  # fmt: skip

    @property
    def pictures(self) -> Mapping[str, ShownPictures]:  # type: ignore[override]
        """Hashes of the pictures that some member was trained on, by session; to set them sets those of each."""
        return all_shown([network.pictures for network in self.networks])

    @pictures.setter
    def pictures(self, known: Mapping[str, ShownPictures]) -> None:
        for network in self.networks:
            network.pictures = known

    @property
    def alone(self) -> tuple[TwinModel, ...]:
        """Each member as an ensemble of one, which takes the sessions, lags and behaviour that all together take."""
        return tuple(self._only(number) for number in range(len(self.networks)))

    @property
    def like(self) -> Tensor:
        """A parameter: the type and device of what the members compute with."""
        return self.networks[0].like

    @property
    def sees_stimulus(self) -> bool:
        """Whether the rates of some member depend on the stimulus."""
        return any(network.sees_stimulus for network in self.networks)

    @property
    def core_takes_behavior(self) -> bool:
        """Whether the features of some member depend on behaviour."""
        return any(network.core_takes_behavior for network in self.networks)

    @property
    def takes_behavior(self) -> bool:
        """Whether the rates of some member depend on behaviour."""
        return any(network.takes_behavior for network in self.networks)

    @property
    def takes_history(self) -> bool:
        """Whether the rates of some member depend on the units' own past."""
        return any(network.takes_history for network in self.networks)

    @property
    def history_lags(self) -> int:
        """Bins of the units' own past that rates depend on."""
        return max(network.history_lags for network in self.networks)

    def step(self, clips: list[Clip], state: list[Any] | None) -> tuple[list[Tensor], list[Any] | None]:
        """Predict clips that continue those of the step before; the state holds one entry a member."""
        each, state = self.each(clips, state)
        return [mean_of(rates) for rates in zip(*each, strict=True)], state

    def each(self, clips: list[Clip], state: list[Any] | None) -> tuple[list[list[Tensor]], list[Any]]:
        """Rates of each member, and the state."""
        made = [
            member.network.step([member.clip(clip) for clip in clips], state and state[number])
            for number, member in enumerate(self.members)
        ]
        return [rates for rates, _ in made], [own for _, own in made]

    def drives(self, clip: Clip, state: list[Any] | None) -> tuple[list[Tensor], list[Any]]:
        """What drives the units in each member, spike history aside, and the state."""
        made = [
            member.network.drives(member.clip(clip), state and state[number])
            for number, member in enumerate(self.members)
        ]
        return [drive for (drive,), _ in made], [own for _, own in made]

    def describe(self) -> dict[str, Any]:
        """All that is needed to build the ensemble again, weights aside, as plain values that JSON can hold."""
        members = [network.describe() for network in self.networks]
        return {"format": ENSEMBLE_FORMAT, "names": list(self.names), "members": members}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "Ensemble":
        """Build the ensemble that :meth:`describe` described, with initial weights."""
        if fault := format_fault(description.get("format"), ENSEMBLE_FORMAT, "make it anew"):
            raise CheckpointError(fault)
        return cls([TwinModel.from_description(member) for member in description["members"]], description["names"])

    def add_session(self, spec: SessionSpec) -> "Ensemble":
        """An ensemble of the members with one more session each; see :meth:`TwinModel.add_session`."""
        return type(self)([member.add_session(spec) for member in self.networks], self.names).train(self.training)

    def without(self, sessions: Sequence[str]) -> "Ensemble":
        """An ensemble of the members without some sessions; see :meth:`TwinModel.without`."""
        return type(self)([member.without(sessions) for member in self.networks], self.names).train(self.training)

    def _only(self, number: int) -> "Ensemble":
        ensemble = type(self).__new__(type(self))
        ensemble._begin([self.networks[number]], [self.names[number]])
        ensemble._shared = tuple(
            replace(one, indices=(one.indices[number],), columns=(one.columns[number],)) for one in self._shared
        )
        ensemble._build()
        ensemble.context = self.context
        ensemble._pool()
        return ensemble.train(self.training)

    def _pool(self) -> None:
        for index, module in enumerate(self.per_session):
            module.likelihood.pool([member.module(index).likelihood for member in self.members])


class _Session(nn.Module):
    """What a session of an ensemble has of its own; the rest, its members have."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood
