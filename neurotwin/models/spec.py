"""What a model must know of a session."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import DatasetConfig
from ..data.prepare import Prepared

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
    config
        The session's resolved config.
    fitted
        Constants of its transforms, from the training data.
    """

    name: str
    subject: str
    unit_ids: tuple[int, ...]
    frame_shape: tuple[int, int, int]
    bin_rate: float
    n_lags: int
    behavior_dim: int = 0
    behavior_names: tuple[str, ...] = ()
    n_history: int = 0
    pixel_scale: tuple[float, float] = (1.0, 0.0)
    unit_positions: tuple[tuple[float, ...], ...] | None = None
    config: DatasetConfig = field(default_factory=DatasetConfig)
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_prepared(cls, prepared: Prepared) -> "SessionSpec":
        """Of a prepared session."""
        positions = prepared.unit_positions
        return cls(
            name=prepared.name, subject=prepared.subject, unit_ids=tuple(prepared.unit_ids.tolist()),
            frame_shape=prepared.frame_shape, bin_rate=prepared.bin_rate, n_lags=prepared.n_lags,
            behavior_dim=prepared.behavior_dim, behavior_names=prepared.behavior_names,
            n_history=prepared.n_history, pixel_scale=prepared.pixel_scale,
            unit_positions=None if positions is None else tuple(map(tuple, positions.tolist())),
            config=prepared.config, fitted=prepared.fitted,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        values = dict(vars(self))
        return values | {"config": self.config.model_dump(mode="json", by_alias=True), "fitted": dict(self.fitted)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SessionSpec":
        """The inverse of :meth:`to_json`."""
        sequences = ("unit_ids", "frame_shape", "pixel_scale", "behavior_names")
        tuples = {name: tuple(values[name]) for name in sequences if name in values}
        positions = values["unit_positions"]
        tuples["unit_positions"] = None if positions is None else tuple(tuple(row) for row in positions)
        return cls(**{**values, **tuples, "config": DatasetConfig.model_validate(values["config"])})
