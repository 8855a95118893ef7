"""Write docs/model_family.md from the shipped model configs: run it after every change of experiments/model_configs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurotwin.analysis.inspect import inspect_model
from neurotwin.config import DatasetConfig, load_dataset_configs, load_model_config
from neurotwin.data.pipelines import behavior_names
from neurotwin.data.simulate import DEMO_SESSIONS, FRAME_SIZE
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel
from neurotwin.models.network import CORE_PARTS

__all__ = ["render"]

ROOT = Path(__file__).parent.parent
PATH = Path(__file__).with_name("model_family.md")
FAMILIES = {
    "The default list": ("", "Small: what `experiments/run_all_models_backimage.sh` trains within ten minutes."),
    "The full family": ("full", "At the size of a GPU; chosen with `--family full`."),
}

INTRODUCTION = """\
# The shipped models

*Generated from `experiments/model_configs/` by `python docs/make_model_family.py`; do not edit.*

Sizes on the {sessions} demo sessions with {units} units in all, frames of {size} x {size} pixels at {rate:g} Hz and
{behavior} behaviour variables. *Core*: parameters that all sessions share. *Per unit*: those of the sessions' own
adapters, readouts, histories and baselines, divided by the units. The receptive field is that of one feature, before
memory. Operations are the multiplications and additions of the convolutions and matrix products for one more predicted
bin. `neurotwin inspect` says the same for your own sessions, layer by layer.
"""


def render() -> str:
    """The text of the page."""
    configs = load_dataset_configs(ROOT / "experiments/dataset_configs/backimage_120.yaml")
    sessions = [demo_spec(config) for config in configs]
    text = INTRODUCTION.format(
        sessions=len(sessions), units=sum(len(spec.unit_ids) for spec in sessions), size=FRAME_SIZE,
        rate=sessions[0].bin_rate, behavior=sessions[0].behavior_dim,
    )  # fmt: skip
    parts = [text]
    for title, (folder, meaning) in FAMILIES.items():
        rows = [row(path, sessions) for path in sorted((ROOT / "experiments/model_configs" / folder).glob("*.yaml"))]
        head = "| config | parameters | core | per unit | receptive field | million operations |"
        parts.append("\n".join([f"## {title}\n", f"{meaning}\n", head, "|---|---:|---:|---:|---|---:|", *rows, ""]))
    return "\n".join(parts)


def demo_spec(config: DatasetConfig) -> SessionSpec:
    """What a model must know of a demo session; the recording itself is not needed."""
    signals = {"eyepos": np.zeros((2, 2)), "eyevel": np.zeros((2, 2)), "pupil": np.zeros(2)}
    names = behavior_names(config, signals)
    return SessionSpec(
        name=config.session, subject=config.session.split("_")[0], config=config,
        unit_ids=tuple(range(DEMO_SESSIONS[config.session])), frame_shape=(1, FRAME_SIZE, FRAME_SIZE),
        bin_rate=config.sampling.target_rate, n_lags=config.keys_lags.n_lags,
        n_history=len(config.keys_lags.history), behavior_dim=len(names), behavior_names=names,
    )  # fmt: skip


def row(path: Path, sessions: Sequence[SessionSpec]) -> str:
    """One model as a row of the table."""
    anatomy = inspect_model(TwinModel(load_model_config(path), sessions))
    everything, core = sum(anatomy.parameters.values()), sum(anatomy.parameters[part] for part in CORE_PARTS)
    n_units = sum(len(spec.unit_ids) for spec in sessions)
    bins, height, width = anatomy.receptive_field
    field = f"{bins} bins, {height} x {width} pixels" if height else "behaviour of the bin"
    name = f"[{path.stem}](../{path.relative_to(ROOT)})"
    return (
        f"| {name} | {everything:,} | {core:,} | {(everything - core) / n_units:,.0f} | {field} "
        f"| {anatomy.operations / 1e6:,.1f} |"
    )


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
