"""What a model must know of a session."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import DatasetConfig

__all__ = ["SessionSpec"]


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """All that a model must know of a session.

    Attributes
    ----------
    name, subject
        Of the session.
    unit_ids
        Ids of its units, in the order of the rates.
    frame_shape
        C, H and W of its frames as prepared.
    axes
        Number of spatial axes that the stimulus has: 2 for frames, 1 for bars or bands, 0 for a full field.
    bin_rate
        Bins a second, Hz, after resampling.
    n_lags
        Frames that a prediction may see, the predicted bin's own included.
    behavior_dim
        K, number of behaviour variables; 0 for none.
    behavior_names
        (K,) name of the transform that each comes from, where known.
    n_history
        Bins of spike history before a predicted one.
    pixel_scale
        (a, b): the stimulus enters as a·x + b, computed on the device.
    unit_positions
        Coordinates of the units, where known.
    stimulus_range
        Smallest and largest value of the stimulus as recorded, where known.
    response_range
        Smallest and largest response, where known.
    whole_responses
        Whether all responses are whole numbers.
    exposed
        Whether some response sums over more or less than one presentation.
    pixels_per_degree
        Pixels per degree of visual angle, where known.
    config
        The session's resolved config.
    fitted
        Constants of its transforms, from the training data.
    """

    name: str
    subject: str
    unit_ids: tuple[int | str, ...]
    frame_shape: tuple[int, int, int]
    axes: int = 2
    bin_rate: float
    n_lags: int
    behavior_dim: int = 0
    behavior_names: tuple[str, ...] = ()
    n_history: int = 0
    pixel_scale: tuple[float, float] = (1.0, 0.0)
    unit_positions: tuple[tuple[float, ...], ...] | None = None
    stimulus_range: tuple[float, float] | None = None
    response_range: tuple[float, float] | None = None
    whole_responses: bool = True
    exposed: bool = False
    pixels_per_degree: float | None = None
    config: DatasetConfig = field(default_factory=DatasetConfig)
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        """Number of units, U."""
        return len(self.unit_ids)

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        values = dict(vars(self))
        return values | {"config": self.config.model_dump(mode="json", by_alias=True), "fitted": dict(self.fitted)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SessionSpec":
        """The inverse of :meth:`to_json`."""
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if plain.get("unit_positions") is not None:
            plain["unit_positions"] = tuple(tuple(row) for row in values["unit_positions"])
        return cls(**{**plain, "config": DatasetConfig.model_validate(values["config"])})
