"""Shows movies to all units of a twin: the core runs once for all sessions that see the same, behaviour is held.

Movies are what a recording would hold: pixels as recorded, before scaling and other transforms of the session.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import nearest
from ..data.clips import as_frames, gather, usable_runs
from ..data.pipelines import apply_pipelines, pixel_scale
from ..data.prepare import Prepared
from ..data.spec import SessionSpec
from ..errors import UserError
from ..models.network import Member, evaluating, mean_of
from ..models.stages import Identity
from ..models.twin import TwinModel

__all__ = ["ExperimentError", "Group", "Held", "Presenter", "Screen"]

Held = Literal["median", "zeros"] | Sequence[float] | Mapping[str, Sequence[float]]
"""What behaviour is held at: the training median, zeros, K numbers as prepared, or K numbers for each session."""


class ExperimentError(UserError):
    """An experiment is not possible as it was asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Screen:
    """What movies are shown on.

    Attributes
    ----------
    frame_shape
        C, H and W, pixels.
    bin_rate
        Frames a second, Hz.
    pixels_per_degree
        Pixels per degree of visual angle; None where it is not known.
    grey, amplitude
        Value of a grey screen, and how far values go above and below it: contrast 1.
    """

    frame_shape: tuple[int, int, int]
    bin_rate: float
    pixels_per_degree: float | None
    grey: float
    amplitude: float

    def degrees(self, pixels: Any) -> Any:
        """A length in degrees of visual angle; NaN where the session does not know its pixels per degree."""
        return np.asarray(pixels) / (self.pixels_per_degree or float("nan"))

    def cycles_per_degree(self, cycles_per_pixel: Any) -> Any:
        """A spatial frequency in cycles per degree; NaN where the session does not know its pixels per degree."""
        return np.asarray(cycles_per_pixel) * (self.pixels_per_degree or float("nan"))

    def blank(self, n: int, n_frames: int, like: Tensor) -> Tensor:
        """Grey movies, (n, n_frames, C, H, W)."""
        return like.new_full((n, n_frames, *self.frame_shape), self.grey)


@dataclass(frozen=True)
class Group:
    """Sessions that see the same movies in the same way: indices into the twin's, and their screen."""

    sessions: tuple[int, ...]
    screen: Screen


class Presenter:
    """Shows movies to a twin, and gathers what its units do.

    Parameters
    ----------
    twin
        The model.
    prepared
        The recordings of its sessions, where they are at hand.
    sessions
        Names of the sessions whose units are looked at; default all.
    behavior
        What behaviour is held at for the whole of every movie: "median", of each variable over the training bins (this
        needs the recordings); "zeros"; K numbers in the units that the model sees; or such numbers by session. Spike
        history, where the model has it, is held at each unit's mean training response ("median") or at 0.
    batch_frames
        Frames that go through the core at a time: memory and speed.

    Attributes
    ----------
    indices
        Of the sessions, in the twin.
    prepared
        The recordings at hand, by that index.
    asked
        What behaviour was asked to be held at.
    notes
        What followed: the values that it is held at, by session.

    Raises
    ------
    ExperimentError
        If the twin has no such session, sees no stimulus, or behaviour cannot be held where it was asked for.
    """

    def __init__(
        self, twin: TwinModel, prepared: Sequence[Prepared] = (), *, sessions: Sequence[str] | None = None,
        behavior: Held = "median", batch_frames: int = 2048,
    ):  # fmt: skip
        names = [spec.name for spec in twin.sessions]
        wanted = names if sessions is None else list(sessions)
        for name in wanted:
            if name not in names:
                raise ExperimentError(f"the model has no session {name!r}; {nearest(name, names)}")
        if not twin.sees_stimulus:
            raise ExperimentError("the model sees behaviour only (initial_input_channels: 0); nothing can be shown")
        self.twin, self.batch_frames = twin, batch_frames
        self.indices = [names.index(name) for name in wanted]
        known = {names.index(p.name): p for p in prepared if p.name in wanted}
        self.prepared = {index: known[index] for index in self.indices if index in known}
        for index, data in self.prepared.items():
            if data.spec.unit_ids != twin.sessions[index].unit_ids:
                raise ExperimentError(f"session {data.name}: the units prepared are not those of the model; set cids")
        self.asked = behavior
        self._behavior = {index: self._held_behavior(index) for index in self.indices}
        self._history = {index: self._held_history(index) for index in self.indices}
        self.notes: dict[str, Any] = {
            "behavior_held_at": {names[i]: b.tolist() for i, b in self._behavior.items() if b is not None},
        }

    @property
    def alone(self) -> list["Presenter"]:
        """A presenter for each member of an ensemble, which shows the same sessions with the same behaviour held."""
        names, data = [self.spec(index).name for index in self.indices], list(self.prepared.values())
        settings = {"sessions": names, "behavior": self.asked, "batch_frames": self.batch_frames}
        return [Presenter(twin, data, **settings) for twin in self.twin.alone]

    @property
    def groups(self) -> list[Group]:
        """The sessions, grouped by what they see: size and rate of frames, scaling, transforms and adapter."""
        found: dict[Any, list[int]] = {}
        for index in self.indices:
            screen = self.screen(index)
            scales = tuple(member.network.sessions[member.sessions[index]].pixel_scale for member in self.twin.members)
            own = None if self._is_plain(index) else index
            found.setdefault((screen, scales, own), []).append(index)
        return [Group(tuple(indices), key[0]) for key, indices in found.items()]

    def screen(self, index: int) -> Screen:
        """What is shown to a session; 8-bit pixels are around 127, others around the middle of their range."""
        spec = self.twin.sessions[index]
        low, high = spec.stimulus_range or (0.0, 255.0)
        eight_bit = low >= 0 and 1.5 < high <= 255
        grey, amplitude = (127.0, 127.0) if eight_bit else ((low + high) / 2, (high - low) / 2)
        return Screen(spec.frame_shape, spec.bin_rate, spec.pixels_per_degree, grey, amplitude)

    def spec(self, index: int) -> SessionSpec:
        """What the model knows of a session."""
        return self.twin.sessions[index]

    def rates(self, group: Group, movies: Tensor) -> dict[int, Tensor]:
        """What every unit of a group does; gradients flow back to the movies, unless a session transforms its frames.

        Parameters
        ----------
        group
            The sessions.
        movies
            (N, T, C, H, W) in recorded units, with T > context frames.

        Returns
        -------
        dict
            By index of the session, (N, T − context, U) responses per bin.
        """
        twin = self.twin
        if movies.shape[1] <= twin.context:
            raise ValueError(f"{movies.shape[1]} frames, where a prediction sees {twin.context + 1}")
        with evaluating(twin):
            each = [self._of_member(member, group, movies) for member in twin.members]
        return {index: mean_of([rates[index] for rates in each]) for index in group.sessions}

    def show(
        self, group: Group, n: int, make: Callable[[np.ndarray], Tensor],
        reduce: Callable[[Tensor], Tensor] = lambda rates: rates,
    ) -> dict[int, np.ndarray]:  # fmt: skip
        """Show many movies, in batches.

        Parameters
        ----------
        group
            The sessions.
        n
            Number of movies.
        make
            From some of the numbers 0 to n − 1 to those movies, (B, T, C, H, W).
        reduce
            From rates (B, L, U) to what is kept of them, (B, ...).

        Returns
        -------
        dict
            By index of the session, what was kept of all movies, (n, ...) float64.
        """
        kept: dict[int, list[np.ndarray]] = {index: [] for index in group.sessions}
        first, step = 0, 1
        with torch.no_grad():
            while first < n:
                movies = make(np.arange(first, min(first + step, n))).to(self.twin.like)
                for index, rates in self.rates(group, movies).items():
                    kept[index].append(reduce(rates.double()).cpu().numpy())
                first += len(movies)
                step = max(1, self.batch_frames // movies.shape[1])
        return {index: np.concatenate(parts) for index, parts in kept.items()}

    def natural_movies(self, index: int, n: int, rng: np.random.Generator, *, n_frames: int | None = None) -> Tensor:
        """Pieces of the session's training stimulus, (N, T, C, H, W); T is what one prediction sees by default.

        Raises
        ------
        ExperimentError
            If the recording is not at hand, or its frames are stored transformed.
        """
        data, length = self.prepared.get(index), n_frames or self.twin.context + 1
        name = self.spec(index).name
        if data is None:
            raise ExperimentError(f"session {name}: natural movies are pieces of its recording, which is not there")
        if pixel_scale(self.spec(index).config) is None:
            raise ExperimentError(f"session {name}: its frames are stored transformed; use noise")
        runs = usable_runs(data, "train")
        bins = np.concatenate([np.arange(a, b) for a, b in runs])
        bins = bins[bins - data.run_start[bins] >= length - 1]
        if not len(bins):
            raise ExperimentError(f"session {name}: no training trial is {length} bins long; use noise")
        starts = np.sort(rng.choice(bins, n, replace=n > len(bins)))
        clip = gather(data, starts, starts + 1, length=1, context=length - 1).clip
        return clip.stimulus.transpose(1, 2).to(self.twin.like)

    def require_data(self, what: str) -> None:
        """Refuse to go on where a recording is missing."""
        absent = [self.spec(index).name for index in self.indices if index not in self.prepared]
        if absent:
            raise ExperimentError(
                f"experiment {what}: needs the recordings, and that of {absent[0]} is not there; give --data_dir"
            )

    def require_gradient(self, what: str) -> None:
        """Refuse to go on where the frames of a session go through transforms that have no gradient."""
        for index in self.indices:
            if pixel_scale(self.spec(index).config) is None:
                raise ExperimentError(
                    f"experiment {what}: the stimulus of {self.spec(index).name} goes through transforms that have no "
                    "gradient; leave the session out with --sessions"
                )

    # ----------------------------------------------------------------------------------------------------------------

    def _is_plain(self, index: int) -> bool:
        plain = all(isinstance(member.module(index).adapter, Identity) for member in self.twin.members)
        return plain and pixel_scale(self.spec(index).config) is not None

    def _of_member(self, member: Member, group: Group, movies: Tensor) -> dict[int, Tensor]:
        """The rates of one network; all that the sessions share is computed once."""
        network, length = member.network, movies.shape[1] - self.twin.context
        x = self._frames(member, group.sessions[0], movies)
        shared = list(network.stages)
        split = len(shared)
        if network.core_takes_behavior:
            split = next(number for number, stage in enumerate(shared) if stage.takes_behavior)
        for stage in shared[:split]:
            x = stage(x, None, None)[0]
        return {index: self._of_session(member, index, shared[split:], x, length) for index in group.sessions}

    def _frames(self, member: Member, index: int, movies: Tensor) -> Tensor:
        """Scaled and adapted, (N, C, T, H, W)."""
        spec = self.spec(index)
        if pixel_scale(spec.config) is None:
            settings = {"fitted": spec.fitted, "outputs": ("stim",), "bin_ms": 1000 / spec.bin_rate}
            raw = movies.detach().cpu().numpy()
            raw = raw[:, :, 0] if raw.shape[2] == 1 else raw
            made = [apply_pipelines(spec.config, {"stim": movie}, **settings)["stim"] for movie in raw]
            movies = as_frames(torch.from_numpy(np.stack(made))).to(movies)
        factor, offset = member.network.sessions[member.sessions[index]].pixel_scale
        return member.module(index).adapter(movies.transpose(1, 2) * factor + offset)[0]

    def _of_session(self, member: Member, index: int, stages: Sequence[Any], x: Tensor, length: int) -> Tensor:
        held, history, module = self._behavior[index], self._history[index], member.module(index)
        behavior = None
        if held is not None and member.network.takes_behavior:
            held = member.behavior(index, held.to(x))
            behavior = held.expand(len(x), self.twin.context + length, -1)
        for stage in stages:
            seen = None if behavior is None else behavior[:, behavior.shape[1] - x.shape[2] :]
            x = stage(x, seen, None)[0]
        if history is not None:
            history = history.to(x).expand(len(x), self.twin.history_lags + length, -1)
        return module(x[:, :, -length:], behavior, history)

    def _held_behavior(self, index: int) -> Tensor | None:
        spec, asked = self.spec(index), self.asked
        if not self.twin.takes_behavior:
            return None
        if isinstance(asked, str) and asked == "zeros":
            return torch.zeros(spec.behavior_dim)
        if isinstance(asked, str) and asked == "median":
            data = self.prepared.get(index)
            if data is None:
                raise ExperimentError(
                    f"session {spec.name}: behaviour is held at its training median, for which its recording is "
                    f"needed; give --data_dir, --behavior zeros, or --behavior with {spec.behavior_dim} numbers"
                )
            return torch.from_numpy(data.median_behavior()).float()
        if isinstance(asked, str):
            raise ExperimentError(f"behaviour cannot be held at {asked!r}; use median, zeros or numbers")
        values = asked.get(spec.name) if isinstance(asked, Mapping) else asked
        if values is None or len(values) != spec.behavior_dim:
            given = "none" if values is None else len(values)
            raise ExperimentError(
                f"session {spec.name}: its behaviour has {spec.behavior_dim} variables "
                f"({', '.join(spec.behavior_names)}), and {given} are given"
            )
        return torch.as_tensor(values, dtype=torch.float32)

    def _held_history(self, index: int) -> Tensor | None:
        if not self.twin.takes_history:
            return None
        if isinstance(self.asked, str) and self.asked == "median" and index in self.prepared:
            return self.prepared[index].statistics().mean.float()
        return torch.zeros(self.spec(index).n_units)
