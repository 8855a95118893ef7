"""The folder of a run with everything that a report shows, of noise: no model, no recording."""

import json
from pathlib import Path

import numpy as np

from neurotwin.analysis.report_data import Curves, SessionData, store_sessions
from neurotwin.metrics import Table

__all__ = ["build_run"]


def build_run(folder: Path, *, sessions: int, units: int, shift: float = 0.0) -> None:
    """A run's folder as training, a report and experiments leave it; of each session unit 0 has no figure."""
    rng = np.random.default_rng(0)
    receptive, exciting = (folder / "experiments" / name for name in ("receptive_field", "exciting_stimulus"))
    for part in (receptive, exciting):
        part.mkdir(parents=True)
        (part / "settings.json").write_text(json.dumps({"experiment": part.name}))
    record = {"name": "net", "parameters": 7, "wall_s": 60, "began": "2025-03-01T10:20:00"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.csv").write_text("epoch,train_loss,val_bps\n1,0.5,0.1\n2,0.4,0.3\n3,0.3,0.2\n")
    (folder / "datasets.yaml").write_text("s:\n  train_val_split: 0.7\n  test_split: 0.1\n")
    tables, tests, known, arrays, stimuli = [], [], {}, {}, []
    rows, shown = ["session,unit_id,size_deg,latency_ms"], ["session,unit_id,rate_hz"]
    for index in range(sessions):
        name = f"{('ada', 'bea')[index % 2]}_{index}"
        bps = rng.gamma(2.0, 0.2, units)
        bps[0] = np.nan
        figures = {
            "bins": np.full(units, 600),
            "spikes": np.full(units, 9.0),
            "bps": bps + shift * (np.arange(units) == 3),
        }
        repeats = {"cc_norm": rng.random(units), "cc_max": np.full(units, 0.8)}
        tables.append(Table.of_session(name, name[:3], np.arange(units), "poisson", figures))
        tests.append(Table.of_session(name, name[:3], np.arange(units), "poisson", figures | repeats))
        curves = {
            kind: Curves(
                observed=rng.random((160, units), np.float32), predicted=rng.random((160, units), np.float32),
                step=0.025, unit="Hz", n_repeats=n, split=split,
            )
            for kind, n, split in (("trace", 1, "val"), ("psth", 12, "test"))
        }  # fmt: skip
        areas = tuple("V1" if unit % 2 else "V4" for unit in range(units))
        known[name] = SessionData(
            name=name, unit_ids=tuple(map(str, range(units))), bin_rate=60.0,
            bins={"train": 36000, "val": 3600, "test": 1800}, areas=areas, **curves,
        )  # fmt: skip
        arrays[f"filters.{name}"] = rng.normal(size=(units, 1, 2, 1, 40, 40)).astype(np.float32)
        stimuli.append(rng.integers(0, 255, (units, 1, 40, 40)).astype(np.uint8))
        rows += [f"{name},{unit},{rng.random()},{rng.random()}" for unit in range(units)]
        shown += [f"{name},{unit},{rng.random()}" for unit in range(units)]
    np.savez(receptive / "arrays.npz", **arrays)
    np.savez(exciting / "arrays.npz", stimuli=np.concatenate(stimuli))
    (receptive / "units.csv").write_text("\n".join(rows) + "\n")
    (exciting / "units.csv").write_text("\n".join(shown) + "\n")
    Table.concatenate(tables).write(folder / "units.csv")
    Table.concatenate(tests).write(folder / "units_test.csv")
    store_sessions(folder / "report.safetensors", known, [0, 0])
