"""A twin is a network in use: it predicts recordings, draws responses, and is kept in files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import torch

from ..checkpoint_file import CheckpointError
from ..config import ModelConfig
from ..data.pictures import ShownPictures, pack
from ..data.spec import SessionSpec
from ..tensorfile import format_fault, save_arrays
from .inputs import Movie, Predictable, RecordedSession, check_chunk, is_recording, open_movie, open_recording
from .network import CORE_PARTS, Network, Streamer, evaluating, mean_of
from .prediction import Drawing, Draws, Prediction

__all__ = ["PICTURES", "TWIN_FORMAT", "TwinModel", "checkpoint_entries", "write_twin"]

TWIN_FORMAT = "neurotwin-twin-4"
PICTURES = "pictures."
"""What the names of arrays that are no weights start with."""


class TwinModel(Network):
    """A digital twin of the units of some sessions; see :class:`~neurotwin.models.network.Network`.

    Attributes
    ----------
    pictures
        Hashes of the pictures that the core was trained on, by session. They are data and no part of the weights. They
        stay when a session is left out, because the core still knows what it learned from it.

    Examples
    --------
    >>> config = ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 4}})
    >>> spec = SessionSpec(
    ...     name="ada_0501", subject="ada", unit_ids=(3, 8), frame_shape=(1, 12, 12), bin_rate=60.0, n_lags=8
    ... )
    >>> twin = TwinModel(config, [spec])
    >>> twin
    TwinModel of 1 session, 2 units, 36 parameters: a prediction sees 4 frames of 1x12x12 at 60 Hz
    >>> twin.predict(np.zeros((10, 12, 12), np.uint8), session="ada_0501", bin_rate=60.0).shape
    (10, 2)
    """

    pictures: Mapping[str, ShownPictures] = MappingProxyType({})

    def __repr__(self) -> str:
        first, count = self.sessions[0], sum(parameter.numel() for parameter in self.parameters())
        units, number = sum(spec.n_units for spec in self.sessions), len(self.sessions)
        return (
            f"{type(self).__name__} of {number} session{'s' * (number > 1)}, {units} units, {count:,} parameters: a "
            f"prediction sees {self.receptive_field} frames of {'x'.join(map(str, first.frame_shape))} at "
            f"{first.bin_rate:g} Hz"
        )

    @overload
    def predict(self, stimulus: Predictable, *, session: str | int | None = None, part: str | None = None,
        chunk: int = 256) -> Prediction: ...  # fmt: skip

    @overload
    def predict(self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        bin_rate: float, responses: np.ndarray | None = None, chunk: int = 256) -> np.ndarray: ...  # fmt: skip

    @torch.no_grad()
    def predict(self, stimulus, behavior=None, *, session=None, bin_rate=None, responses=None, part=None, chunk=256):
        """Rates for a recording, or for a raw movie.

        A recording is resampled and transformed as in training, with the constants that were fitted then, and whole
        trials are streamed: what a recurrent core remembers is carried through each. Of a movie the caller says what it
        is, and it is compared with what training saw.

        Parameters
        ----------
        stimulus
            A :class:`~neurotwin.data.session.Session`, the path of a session file or of a recording of any known
            format, or the name of a session of this model, which is then found where it was trained. Or a movie
            (T, ...), one stretch without gaps, its values as a recording of the session holds them.
        behavior
            For a movie: raw signals by name, each (T,) or (T, K).
        session
            Name or index of the session whose units are predicted; a recording's own name will do.
        bin_rate
            For a movie: its bins a second, Hz, which must be those of the model, because at another rate it would be
            predicted as if it were slower or faster.
        responses
            For a movie and a model with spike history: (T, U). A recording has its own.
        part
            For a recording: "train", "val" or "test", as training drew them; None: all bins.
        chunk
            Bins predicted at a time: memory and speed. The result does not depend on it (to rounding): a recurrent
            model carries its state from chunk to chunk.

        Returns
        -------
        Prediction or ndarray
            For a recording a :class:`~neurotwin.models.prediction.Prediction`, whose `rates` are those that
            `neurotwin evaluate` scores. For a movie (T, U) expected responses per bin. NaN where a bin lacks frames to
            see: in the first `context` bins of a movie and of every trial.

        Raises
        ------
        ValueError
            If what is given is not like what the session was trained on: another rate, frames of another size, fewer
            bins than a prediction sees, values of another range, other behaviour, NaN.
        SessionError
            If a recording is missing, broken, or cannot be one of the session's.
        """
        if is_recording(stimulus):
            recorded = self._open(stimulus, behavior, responses, session, bin_rate, part, chunk)
            return self._predict_recording(recorded, chunk)
        movie = self._open_movie(stimulus, behavior, responses, session, bin_rate, part, chunk)
        if self.takes_history and responses is None:
            raise ValueError("this model sees spike history; give responses, or draw them with sample()")
        rates = np.full((len(movie.frames), self.sessions[movie.index].n_units), np.nan, np.float32)
        streamer = Streamer(self)
        with evaluating(self):
            for clip, bins in movie.clips(self, chunk):
                rates[bins] = streamer(clip)[0].cpu().numpy()
        return rates

    @overload
    def sample(self, stimulus: Predictable, *, session: str | int | None = None, part: str | None = None,
        n_samples: int = 1, generator: torch.Generator | None = None, chunk: int = 256) -> Draws: ...  # fmt: skip

    @overload
    def sample(self, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None = None, *, session: str | int,
        bin_rate: float, n_samples: int = 1, generator: torch.Generator | None = None, chunk: int = 256,
    ) -> tuple[np.ndarray, np.ndarray]: ...  # fmt: skip

    @torch.no_grad()
    def sample(
        self, stimulus, behavior=None, *, session=None, bin_rate=None, part=None, n_samples=1, generator=None,
        chunk=256,
    ):  # fmt: skip
        """Draw responses forward in time. A model with spike history sees those that it drew, and zeros before a trial.

        Parameters
        ----------
        stimulus, behavior, session, bin_rate, part, chunk
            As for :meth:`predict`.
        n_samples
            Responses to draw of every bin.
        generator
            Source of the responses; by default one seeded with 0.

        Returns
        -------
        drawn, rates
            (n_samples, T, U) responses and the rates that they were drawn from; NaN where :meth:`predict` gives NaN.
            For a recording they come as :class:`~neurotwin.models.prediction.Draws`, with what was recorded.
        """
        if not isinstance(n_samples, int) or n_samples < 1:
            raise ValueError(f"n_samples is {n_samples!r}; give a whole number of at least 1")
        generator = torch.Generator(self.like.device).manual_seed(0) if generator is None else generator
        streamer = Streamer(self)
        if is_recording(stimulus):
            recorded = self._open(stimulus, behavior, None, session, bin_rate, part, chunk)
            drawing = Drawing(self, recorded.index, n_samples, generator)
            drawn = np.full((n_samples, *recorded.prepared.responses.shape), np.nan, np.float32)
            rates = drawn.copy()
            with evaluating(self):
                for sample, bins in recorded.clips(self.context, chunk):
                    sample = sample.to(self.like.device)
                    drives, carries = streamer.drives(sample.clip), sample.clip.carries
                    made = drawing(drives, carries=carries, exposure=sample.target.exposure)
                    for target, values in zip((drawn, rates), made, strict=True):
                        target[:, bins[bins >= 0]] = values.cpu().numpy()[:, bins >= 0]
            return Draws(drawn=drawn, rates=rates, mask=recorded.mask(rates[0]), **recorded.known)
        movie = self._open_movie(stimulus, behavior, None, session, bin_rate, part, chunk)
        drawing = Drawing(self, movie.index, n_samples, generator)
        drawn = np.full((n_samples, len(movie.frames), self.sessions[movie.index].n_units), np.nan, np.float32)
        rates = drawn.copy()
        with evaluating(self):
            for clip, bins in movie.clips(self, chunk):
                made = drawing(streamer.drives(clip), carries=clip.carries)
                drawn[:, bins], rates[:, bins] = (values[:, 0].cpu().numpy() for values in made)
        return drawn, rates

    @property
    def alone(self) -> tuple["TwinModel", ...]:
        """A twin for each member, which takes what this one takes: of one network, the twin itself."""
        return (self,)

    def describe(self) -> dict[str, Any]:
        """All that is needed to build the model again, weights aside, as plain values that JSON can hold."""
        config = self.config.model_dump(mode="json", by_alias=True, exclude={"training"})  # how, not what
        return {"format": TWIN_FORMAT, "config": config, "sessions": [spec.to_json() for spec in self.sessions]}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "TwinModel":
        """Build the model that :meth:`describe` described, with initial weights."""
        if fault := format_fault(description.get("format"), TWIN_FORMAT, "train it anew"):
            raise CheckpointError(fault)
        sessions = [SessionSpec.from_json(spec) for spec in description["sessions"]]
        return cls(ModelConfig.model_validate(description["config"]), sessions)

    def add_session(self, spec: SessionSpec) -> "TwinModel":
        """A twin of these sessions and one more, which is not fitted yet; this one is not changed.

        The core and everything of the old sessions are copied, to the last bit. The new session's adapter starts as
        that of the first session where both have the same parameters. See :func:`neurotwin.transfer.transfer`.

        Raises
        ------
        ConfigError
            If the session does not fit the model.
        """
        twin = type(self)(self.config, [*self.sessions, spec])
        twin.load_state_dict(twin.state_dict() | self.state_dict())
        new, old = twin.per_session[-1].adapter, self.per_session[0].adapter
        weights = old.state_dict()
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in new.state_dict().items()}:
            new.load_state_dict(weights)
        twin.pictures = self.pictures
        return twin.to(self.like.device).train(self.training)

    def without(self, sessions: Sequence[str]) -> "TwinModel":
        """A twin without some sessions, given by name; what remains is copied, and this one is not changed.

        Raises
        ------
        ValueError
            If the model has no such session.
        ConfigError
            If no session would be left.
        """
        gone = {self.session_index(name) for name in sessions}
        kept = [index for index in range(len(self.sessions)) if index not in gone]
        twin = type(self)(self.config, [self.sessions[index] for index in kept])
        for part in CORE_PARTS:
            getattr(twin, part).load_state_dict(getattr(self, part).state_dict())
        for module, index in zip(twin.per_session, kept, strict=True):
            module.load_state_dict(self.per_session[index].state_dict())
        twin.pictures = self.pictures
        return twin.to(self.like.device).train(self.training)

    def save(self, path: str | Path) -> Path:
        """Write weights and description to one safetensors file with checksums, and return its path."""
        write_twin(self, path, self.describe())
        return Path(path)

    def _predict_recording(self, recorded: RecordedSession, chunk: int) -> Prediction:
        rates, streamer = np.full(recorded.prepared.responses.shape, np.nan, np.float32), Streamer(self)
        spread = rates.copy() if len(self.members) > 1 else None
        with evaluating(self):
            for sample, bins in recorded.clips(self.context, chunk):
                each = streamer.each(sample.clip.to(self.like.device))
                rates[bins[bins >= 0]] = mean_of(each).cpu().numpy()[bins >= 0]
                if spread is not None:
                    spread[bins[bins >= 0]] = torch.stack(each).std(dim=0, correction=0).cpu().numpy()[bins >= 0]
        return Prediction(rates=rates, disagreement=spread, mask=recorded.mask(rates), **recorded.known)

    def _open(
        self, given: Predictable, behavior: Any, responses: Any, session: str | int | None, bin_rate: float | None,
        part: str | None, chunk: int,
    ) -> RecordedSession:  # fmt: skip
        if behavior is not None or responses is not None:
            raise ValueError("a recording brings its own behaviour and responses; give arrays with a movie only")
        check_chunk(chunk)
        return open_recording(self, given, session=session, bin_rate=bin_rate, part=part)

    def _open_movie(
        self, stimulus: Any, behavior: Any, responses: Any, session: str | int | None, bin_rate: float | None,
        part: str | None, chunk: int,
    ) -> Movie:  # fmt: skip
        if part is not None:
            raise ValueError(f"part={part!r}: an array has no parts; predict a recording, or its name")
        return open_movie(self, stimulus, behavior, responses, session=session, bin_rate=bin_rate, chunk=chunk)


def write_twin(twin: TwinModel, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a twin under a description, which is its own or one with less in it."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in twin.state_dict().items()}
    pictures, counts = pack(twin.pictures)
    arrays |= {PICTURES + name: array for name, array in pictures.items()}
    metadata = {"format": description["format"], "twin": json.dumps(description), "pictures": counts}
    save_arrays(path, arrays, metadata)


def checkpoint_entries(twin: TwinModel) -> dict[str, Any]:
    """What a training checkpoint holds of a twin beside its weights; `load_twin` reads it."""
    pictures, counts = pack(twin.pictures)
    arrays = {name: torch.from_numpy(array) for name, array in pictures.items()}
    return {"twin": json.dumps(twin.describe()), "pictures": arrays | {"counts": counts}}
