"""Whether a new session is like those that a core was trained on; each refusal says what to change."""

from ..config import ConfigError
from ..data.pictures import familiar
from ..data.prepare import Prepared
from ..data.spec import SessionSpec
from ..models.twin import TwinModel

__all__ = ["check_new", "shown_before"]

_SAME_SCALE = 0.05


def check_new(twin: TwinModel, spec: SessionSpec) -> None:
    """Refuse a session whose frames or behaviour would mean something else to the core than those it was trained on.

    Raises
    ------
    ConfigError
        If rate, values of pixels, degrees per pixel or behaviour differ; or if the twin knows the name.
    """
    first, name = twin.sessions[0], f"session {spec.name}"
    if spec.name in [known.name for known in twin.sessions]:
        raise ConfigError(f"{name}: the checkpoint has a session of this name; set another `session` in its YAML")
    if abs(spec.bin_rate - first.bin_rate) > 1e-3 * first.bin_rate:
        raise ConfigError(
            f"{name}: {spec.bin_rate:g} bins a second, and the core was trained at {first.bin_rate:g}; set `sampling` "
            "to that rate"
        )
    adapted = (spec.config.adapter or twin.config.adapter).type != "none"
    if not adapted and spec.frame_shape != first.frame_shape:
        raise ConfigError(
            f"{name}: frames of {spec.frame_shape} (C, H, W), and the core was trained on {first.frame_shape}; resize "
            "them when the recording is converted, or give the session an `adapter` in its YAML"
        )
    known = [old.pixels_per_degree for old in twin.sessions if old.pixels_per_degree]
    if spec.pixels_per_degree and known and not adapted:
        nearest = min(known, key=lambda value: abs(value - spec.pixels_per_degree))
        if abs(nearest - spec.pixels_per_degree) > _SAME_SCALE * nearest:
            raise ConfigError(
                f"{name}: {spec.pixels_per_degree:g} pixels per degree, and the core was trained at {nearest:g}; "
                "resize the frames when the recording is converted, or give the session an `adapter` in its YAML"
            )
    _check_scale(twin, spec)
    if twin.takes_behavior and spec.behavior_names != first.behavior_names:
        raise ConfigError(
            f"{name}: its behaviour comes from {_listed(spec.behavior_names)}, and that of the checkpoint from "
            f"{_listed(first.behavior_names)}; use the same transforms"
        )


def _check_scale(twin: TwinModel, spec: SessionSpec) -> None:
    """The values that the core sees must span about the range that it was trained on."""
    spans = [_span(old) for old in twin.sessions if old.stimulus_range is not None]
    if spec.stimulus_range is None or not spans or spec.frame_shape[0] == 0:
        return
    least, most = min(low for low, _ in spans), max(high for _, high in spans)
    low, high = _span(spec)
    width = max(most - least, 1e-12)
    if high - low > 2 * width or high - low < width / 10 or low > most or high < least:
        raise ConfigError(
            f"session {spec.name}: the core would see pixels from {low:.3g} to {high:.3g}, and was trained on "
            f"{least:.3g} to {most:.3g}; scale the stimulus as there (transforms: stim)"
        )


def _span(spec: SessionSpec) -> tuple[float, float]:
    factor, offset = spec.pixel_scale
    ends = [factor * value + offset for value in spec.stimulus_range]
    return min(ends), max(ends)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(names)) or "nothing"


def shown_before(twin: TwinModel, prepared: Prepared) -> str | None:
    """One line about pictures of a session's validation and test part that the core was trained on; None without.

    Frames of other numbers of channels are not compared.
    """
    if prepared.spec.frame_shape[0] != twin.sessions[0].frame_shape[0]:
        return None
    parts = {"validation": prepared.shown("val"), "test": prepared.shown("test")}
    found = {name: familiar(part, twin.pictures) for name, part in parts.items()}
    texts = [f"{seen.count} {name} pictures in {seen.where}" for name, seen in found.items() if seen is not None]
    if not texts:
        return None
    return (
        f"session {prepared.name}: the core was trained on {' and on '.join(texts)}, so scores on them are too good; "
        "give their trials to training with Session(split=...), or take a core that has not seen them"
    )
