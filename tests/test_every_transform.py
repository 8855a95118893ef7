"""No parameter of a transform is without effect: every field of each is changed, and the signal comes out different.

What is tried is read from the registry, so that a new parameter cannot escape.
"""

from typing import Any

import numpy as np

from neurotwin.config import DatasetConfig, params_of, registered
from neurotwin.data.pipelines import apply_pipelines, fit_pipelines

START: dict[str, dict[str, Any]] = {
    "mul": {"factor": 2.0},
    "smooth": {"sigma": 2.0},
    "select_units": {"indices": [2, 0]},
    "temporal_basis": {"num_cosine_funcs": 3, "history_bins": 12},
    "dacones": {"filter_length": 8},
}
"""What a transform needs, or has in small."""

SOURCES = {"select_units": "robs", "dacones": "stim", "fftwhitening": "stim", "pixelnorm": "stim"}
"""The signal that a transform is for, where it is not behaviour."""

GUESSES: list[Any] = [
    True, False, 0, 1, 2, 3, 9, 0.3, 0.5, 2.5, 40.0, -1, "float32", "float64", "uint8", "int32", [5, 50], [4, 9],
    ["alpha", "beta"], [1], "cids",
]  # fmt: skip
"""Values to try; those that a parameter cannot have are passed over."""

IDLE = {
    "splitrelu.trainable_gain": "of one value; a gain is not learned in data",
    "dacones.learnable_params": "parameters are learned by the frontend `da` alone",
    "unsqueeze.dim": "of several axes behaviour is laid out as variables anyway, in the same order",
    "dacones.height": "the frontend `da` alone checks it",
    "dacones.width": "the frontend `da` alone checks it",
}
"""Parameters without effect, and why."""


def outcome(name: str, params: dict[str, Any]) -> str:
    """What a signal becomes, as text; the refusal where that cannot be."""
    draw = np.random.default_rng(0)
    signals = {
        "stim": draw.integers(0, 256, (40, 6, 5)).astype(np.uint8),
        "robs": draw.poisson(1.0, (40, 3)).astype(np.float32),
        "gaze": draw.normal(size=(40, 2)).cumsum(axis=0),
        "unit_ids": np.array([4, 7, 9]),
    }
    source = SOURCES.get(name, "gaze")
    exposed = "behavior" if source == "gaze" else source
    try:
        pipeline = {"source": source, "ops": [{name: params}], "expose_as": exposed}
        config = DatasetConfig.model_validate({"transforms": {"a": pipeline}})
        runs, settings = np.array([[0, 25], [25, 40]]), {"bin_ms": 10.0}
        fitted = fit_pipelines(config, signals, runs, np.arange(40) < 20, **settings)
        made = apply_pipelines(config, signals, runs=runs, fitted=fitted, **settings)[exposed]
    except (ValueError, LookupError) as error:
        return f"refused: {error}"
    return f"{made.dtype} {made.shape} {np.nan_to_num(np.asarray(made, float)).tolist()}"


def test_every_parameter_of_every_transform_does_something():
    faults = []
    for name in registered("transform"):
        base = outcome(name, START.get(name, {}))
        if base.startswith("refused"):
            faults.append(f"{name}: {base}; say in START what it needs")
        for key in params_of("transform", name).model_fields:
            outcomes = [outcome(name, START.get(name, {}) | {key: value}) for value in GUESSES]
            acts = any(not made.startswith("refused") and made != base for made in outcomes)
            checked = any(made.startswith("refused") and f"{key}:" in made and "but" in made for made in outcomes)
            if not acts and not checked and f"{name}.{key}" not in IDLE:
                faults.append(f"{name}.{key}")
            if acts and f"{name}.{key}" in IDLE:
                faults.append(f"{name}.{key} has an effect after all")
    assert not faults
