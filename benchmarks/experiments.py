"""Are experiments on a twin of the demo sessions right? They are compared with the units that were simulated.

    python -m benchmarks.experiments RUN [RUN ...] [--sessions ada_demo1 ...] [--data_dir DIR] [--write-docs]

A RUN is a checkpoint. Of several, each figure is given as median and range. Twins must be of demo sessions at 120 Hz
(experiments/dataset_configs/all_120.yaml). Where the truth has no formula, the same experiment is run on the simulator
itself, which takes the twin's place.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.experiments_recorded import around_saccades, stabilised
from benchmarks.pages import write_between
from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.clips import stream
from neurotwin.data.prepare import Prepared, prepare
from neurotwin.data.session import Session
from neurotwin.data.simulate import BIN_RATE, FRAME_SIZE, Units, draw_units
from neurotwin.experiments import ExcitingStimulus, Gratings, Presenter, ReceptiveField
from neurotwin.experiments.maps import overlap
from neurotwin.models import TwinModel, load_twin
from neurotwin.models.network import Streamer

__all__ = ["AIMS", "SimulatorPresenter", "behavioral_gain", "main", "summary", "true_subspace", "truth_table"]

GREY = 127
PAGE = Path(__file__).parent.parent / "docs/experiments.md"
AIMS = {
    "overlap of the Gabor's pair, median, units at 60% of the oracle": 0.8,
    "frequency of the Gabor within 20% of the carrier's, share, units at 60% of the oracle": 0.9,
    "orientation within 15 degrees, share": 0.9,
    "spatial frequency within 20% of the carrier's, share": 0.9,
    "rate over that of the true Gabor, median": 0.9,
    "units whose image beats the best of 5000 natural patches, share": 1.0,
    "log gain over time, correlation with the true one, median": 0.8,
    "pupil gain, correlation over units": 0.8,
    "lags at which the twin is within the 95% band about the truth, share": 0.95,
    "change of the rate over bins, correlation with the simulator's, median": 0.8,
    "mean rate over that with the gaze as it was, correlation over units": 0.8,
}
"""What a figure should reach at least."""


class SimulatorPresenter(Presenter):
    """Shows movies to the simulated units in place of the twin's; behaviour has a gain of 1."""

    def rates(self, group, movies):
        """As :meth:`Presenter.rates`, responses per bin of the twin."""
        first, factor = self.twin.context, round(BIN_RATE / group.screen.bin_rate)
        shown = np.repeat(movies.detach().cpu().numpy()[:, :, 0].round().astype(np.uint8), factor, axis=1)
        grey = np.full((40, *shown.shape[2:]), GREY, np.uint8)
        rates = {}
        for index in group.sessions:
            units = draw_units(self.spec(index).name)
            each = [units.rate(np.concatenate([grey, movie]))[len(grey) :] for movie in shown]
            binned = np.stack(each).reshape(len(shown), -1, factor, each[0].shape[1]).mean(2)
            rates[index] = torch.from_numpy(binned[:, first:] / group.screen.bin_rate)
        return rates


def true_subspace(units: Units, bins: int, bin_rate: float) -> np.ndarray:
    """Filters of E and O, (U, 2, bins, H, W), oldest first."""
    (even, odd), kernels = units.spatial_filters(), units.temporal_filters(bin_rate)
    weights = np.stack([np.ones_like(units.direction), units.direction])
    fast, slow = kernels * weights[..., None]
    e = np.einsum("ul,uhw->ulhw", fast, even) + np.einsum("ul,uhw->ulhw", slow, odd)
    o = np.einsum("ul,uhw->ulhw", fast, odd) - np.einsum("ul,uhw->ulhw", slow, even)
    both = np.stack([e, o], axis=1)
    missing = max(0, bins - both.shape[2])
    return np.pad(both, ((0, 0), (0, 0), (missing, 0), (0, 0), (0, 0)))[:, :, -bins:]


def receptive_fields(twin: TwinModel, prepared: list[Prepared], good: dict[str, np.ndarray]) -> dict:
    """Overlap of the filters found, and of the Gabors fitted to them, with the true ones; place, angle, frequency."""
    result = ReceptiveField(recorded=False).run(twin, prepared, sessions=[p.name for p in prepared])
    overlaps, first, placed, turned, well, table = [], [], [], [], [], result.tables["units"]
    fitted, carriers = [], []
    for data in prepared:
        units = draw_units(data.name)
        truth = true_subspace(units, twin.context + 1, data.spec.bin_rate)
        found, rows = result.arrays[f"filters.{data.name}"][:, :, :, 0], table["session"] == data.name
        first += [overlap(a[:1], b) for a, b in zip(found, truth, strict=True)]
        overlaps += [overlap(a, b) for a, b in zip(found, truth, strict=True)]
        pairs = result.arrays[f"gabor_filters.{data.name}"][:, :, :, 0]
        fitted += [overlap(a, b) for a, b in zip(pairs, truth, strict=True)]
        carriers += np.abs(np.log2(table["gabor_spatial_frequency_cpp"][rows] / units.frequency)).tolist()
        xy = np.stack([table["center_x_px"][rows], table["center_y_px"][rows]], 1)
        placed += np.linalg.norm(xy - units.center, axis=1).tolist()
        turned += _apart(table["orientation_deg"][rows], np.rad2deg(units.orientation)).tolist()
        well += good[data.name].tolist()
    overlaps, well, fitted, carriers = np.array(overlaps), np.array(well), np.array(fitted), np.array(carriers)
    return {
        "subspace overlap, median, all units": np.median(overlaps),
        "subspace overlap, median, units at 60% of the oracle": np.median(overlaps[well]),
        "overlap of the Gabor's pair, median, all units": np.median(fitted),
        "overlap of the Gabor's pair, median, units at 60% of the oracle": np.median(fitted[well]),
        "frequency of the Gabor within 20% of the carrier's, share, all units": np.mean(carriers < np.log2(1.2)),
        "frequency of the Gabor within 20% of the carrier's, share, units at 60% of the oracle":
            np.mean(carriers[well] < np.log2(1.2)),
        "frequency of the Gabor, median error to the carrier's, %": 100 * (2 ** np.median(carriers) - 1),
        "units at 60% of the oracle": int(well.sum()), "units": len(well),
        "centre, median distance, px": np.nanmedian(placed),
        "orientation of filters within 15 degrees, share": np.mean(np.array(turned) < 15),
        "strongest filter in the true subspace, median": np.median(first),
    }  # fmt: skip


def tuning(twin: TwinModel, prepared: list[Prepared]) -> dict:
    """Preferred orientation and frequency beside those of the simulator, measured with the same gratings."""
    options = Gratings(n_diameters=0, contrasts=(), plaids=False, temporal_frequencies=(4.0, 8.0))
    names = [p.name for p in prepared]
    found = options.run(twin, prepared, sessions=names).tables["units"]
    true = options.measure(SimulatorPresenter(twin, prepared, sessions=names)).tables["units"]
    drawn = [draw_units(name) for name in names]
    angle = np.concatenate([np.rad2deg(units.orientation) for units in drawn])
    selective = true["osi"] > 0.3
    apart = _apart(found["preferred_orientation_deg"], angle)[selective]
    ratio = np.abs(np.log2(found["preferred_spatial_frequency_cpp"] / true["preferred_spatial_frequency_cpp"]))
    drawn_at = np.concatenate([units.frequency for units in drawn])
    carrier = np.abs(np.log2(found["preferred_spatial_frequency_cpp"] / drawn_at))[selective]
    complexity = np.concatenate([units.complexity for units in drawn])
    return {
        "selective units": int(selective.sum()),
        "orientation within 15 degrees, share": np.mean(apart < 15),
        "spatial frequency within 20% of the simulator's, share": np.mean(ratio[selective] < np.log2(1.2)),
        "spatial frequency, median error to the simulator's, %": 100 * (2 ** np.median(ratio[selective]) - 1),
        "spatial frequency within 20% of the carrier's, share": np.mean(carrier < np.log2(1.2)),
        "spatial frequency, median error to the carrier's, %": 100 * (2 ** np.median(carrier) - 1),
        "direction index, correlation": np.corrcoef(found["dsi"], true["dsi"])[0, 1],
        "F1/F0 against complexity, correlation": np.corrcoef(found["f1_f0"], complexity)[0, 1],
    }  # fmt: skip


def exciting(twin: TwinModel, prepared: list[Prepared]) -> dict:
    """Images found on the twin, shown to the simulator, beside true Gabors and photographs of equal contrast."""
    options = ExcitingStimulus()
    names = [p.name for p in prepared]
    result = options.run(twin, prepared, sessions=names)
    simulator = SimulatorPresenter(twin, prepared, sessions=names)
    (group,) = simulator.groups
    images, first, rows = result.arrays["stimuli"][:, 0].astype(float) - GREY, 0, []
    for index, data in zip(group.sessions, prepared, strict=True):
        units = draw_units(data.name)
        own = images[first : first + data.n_units]
        first += data.n_units
        norm = options.contrast * GREY * FRAME_SIZE
        found = _rates_of(simulator, group, index, own, options)[np.arange(data.n_units), np.arange(data.n_units)]
        even, odd = units.spatial_filters()
        angles = np.arange(0, 2 * np.pi, np.pi / 8)
        gabors = np.stack([np.cos(a) * even + np.sin(a) * odd for a in angles], 1).reshape(-1, *even.shape[1:])
        best = _rates_of(simulator, group, index, _of_norm(gabors, norm), options)
        best = best.reshape(data.n_units, len(angles), -1).max(1)[np.arange(data.n_units), np.arange(data.n_units)]
        patches = simulator.natural_movies(index, 5000, np.random.default_rng(0), n_frames=1).numpy()[:, 0, 0] - GREY
        patches = patches[patches.std((1, 2)) > 1]
        natural = _rates_of(simulator, group, index, _of_norm(patches, norm), options).max(0)
        rows.append(np.stack([found, best, natural]))
    found, best, natural = np.concatenate(rows, axis=1)
    return {
        "rate over that of the true Gabor, median": np.median(found / best),
        "rate over that of the true Gabor, 10th percentile": np.quantile(found / best, 0.1),
        "units whose image beats the best of 5000 natural patches, share": np.mean(found > natural),
        "best natural patch over the true Gabor, median": np.median(natural / best),
    }


def behavior(twin: TwinModel, prepared: list[Prepared]) -> dict:
    """The gain by behaviour: twin over twin with behaviour at its median, beside that of the simulator."""
    presenter = Presenter(twin, prepared, sessions=[p.name for p in prepared])
    correlations, slopes, true_slopes = [], [], []
    for index, data in presenter.prepared.items():
        held = torch.from_numpy(data.median_behavior()).float()
        streamers, logs, used_bins = (Streamer(twin), Streamer(twin)), [], []
        with torch.inference_mode():
            for sample in stream(data, "val", context=twin.context):
                clip = sample.of_session(index).clip
                still = type(clip)(**{**vars(clip), "behavior": held.expand_as(clip.behavior)})
                ratio = (streamers[0](clip) / streamers[1](still)).log()
                used = sample.target.mask.any(-1)
                logs.append(ratio[used].numpy())
                used_bins.append((clip.bins[:, None] + torch.arange(clip.length))[used].numpy())
        logs, bins = np.concatenate(logs), np.concatenate(used_bins)
        units = draw_units(data.name)
        signals = np.asarray(data.behavior)[bins]
        is_pupil = np.array([name == "pupil" for name in data.spec.behavior_names])
        state = _standard(signals[:, is_pupil][:, 0])
        design = np.column_stack([np.ones(len(state)), state, signals[:, ~is_pupil]])
        slopes += np.linalg.lstsq(design, logs, rcond=None)[0][1].tolist()
        true_slopes += units.pupil_gain.tolist()
        true = np.log(behavioral_gain(data)[bins])
        correlations += [np.corrcoef(a, b)[0, 1] for a, b in zip(logs.T, true.T, strict=True)]
    return {
        "log gain over time, correlation with the true one, median": np.nanmedian(correlations),
        "pupil gain, correlation over units": np.corrcoef(slopes, true_slopes)[0, 1],
        "pupil gain, mean found over mean true": np.mean(slopes) / np.mean(true_slopes),
    }


def main() -> None:
    """Run the comparisons and print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="checkpoints")
    parser.add_argument("--sessions", nargs="+")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", help="also write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put median and range into docs/experiments.md")
    arguments = parser.parse_args()
    found = []
    for run in arguments.runs:
        print(f"# {run}", flush=True)
        found.append(_figures(run, arguments.sessions, arguments.data_dir))
    if len(found) > 1:
        print(f"# median and range of {len(found)} runs")
        for name, keys in summary(found).items():
            for key, (median, low, high) in keys.items():
                print(f"{name:18} {key:70} {median:8.3f} ({low:.3f} to {high:.3f})")
    if arguments.write_docs:
        write_between(PAGE, "<!-- truth -->\n", "<!-- end -->", truth_table(summary(found)))
    if arguments.output:
        written = found[0] if len(found) == 1 else dict(zip(arguments.runs, found, strict=True))
        Path(arguments.output).write_text(json.dumps(written, indent=2) + "\n")


def summary(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Median, least and largest of each figure over runs."""
    return {
        name: {
            key: (float(np.median(values)), min(values), max(values))
            for key in found[0][name]
            for values in [[figures[name][key] for figures in found]]
        }
        for name in found[0]
    }


def truth_table(figures: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """A table with a line for each figure: its experiment, median and range, and its aim where it has one."""
    found = ["| experiment | figure | median | range | aim | |", "|---|---|---|---|---|---|"]
    for name, keys in figures.items():
        for key, values in keys.items():
            median, low, high = (f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}" for value in values)
            aim = AIMS.get(key)
            met = "" if aim is None else "met" if values[0] >= aim else "not met"
            found.append(f"| `{name}` | {key} | {median} | {low} to {high} | {'' if aim is None else aim} | {met} |")
    return "\n".join([*found, ""])


def behavioral_gain(data: Prepared) -> np.ndarray:
    """The simulator's gain by behaviour alone, (bins, U), in the bins of a prepared demo session.

    The rates of the file hold the loss of spikes of some units too, which no behaviour predicts; the gain does not.

    Raises
    ------
    ValueError
        If the file's bins are not those that were prepared.
    """
    session = Session.load(data.spec.config.path)
    gain = draw_units(data.name).gain(session.behavior["pupil"], session.behavior["eyevel"])
    factor, binned = round(BIN_RATE / data.spec.bin_rate), np.empty((data.n_bins, data.n_units), np.float32)
    prepared_trial, trial = np.asarray(data.trial), np.asarray(session.trial)
    for one in np.unique(prepared_trial):
        here = np.flatnonzero(prepared_trial == one)
        source = np.flatnonzero(trial == one)[: factor * len(here)].reshape(len(here), factor)
        if not np.allclose(session.true_rate[source].sum(1), np.asarray(data.true_rate)[here], rtol=1e-4):
            raise ValueError(f"trial {one} of {data.spec.config.path} does not hold the bins of {data.name}")
        binned[here] = gain[source].mean(1)
    return binned


def _figures(run: str, sessions: list[str] | None, data_dir: str | None) -> dict[str, dict[str, float]]:
    """All figures of one twin, printed as they come."""
    twin = load_twin(run)
    configs = [s.config for s in twin.sessions if not sessions or s.name in sessions]
    if data_dir:
        configs = [c.model_copy(update={"path": str(Path(data_dir) / Path(c.path).name)}) for c in configs]
    prepared = prepare(configs)
    table = evaluate(twin, prepared, "val")
    good = {p.name: (table["fraction_of_oracle"] >= 0.6)[table["session"] == p.name] for p in prepared}
    figures = {}
    for name, figure in (
        ("receptive_field", lambda: receptive_fields(twin, prepared, good)),
        ("gratings", lambda: tuning(twin, prepared)),
        ("exciting_stimulus", lambda: exciting(twin, prepared)),
        ("ablation", lambda: behavior(twin, prepared)),
        ("events", lambda: around_saccades(twin, prepared)),
        ("counterfactual", lambda: stabilised(twin, prepared)),
    ):
        figures[name] = {key: float(value) for key, value in figure().items()}
        for key, value in figures[name].items():
            print(f"{name:18} {key:70} {value:8.3f}", flush=True)
    return figures


def _rates_of(simulator: Presenter, group, index: int, images: np.ndarray, options: ExcitingStimulus) -> np.ndarray:
    """Mean rates (N, U), Hz, while images about grey are shown."""
    shown, context = options.bins(group.screen), simulator.twin.context

    def make(rows: np.ndarray) -> torch.Tensor:
        frames = torch.from_numpy(images[rows] + GREY).float()[:, None, None]
        return torch.cat([torch.full_like(frames, GREY).expand(-1, context, -1, -1, -1),
                          frames.expand(-1, shown, -1, -1, -1)], dim=1)  # fmt: skip

    alone = type(group)((index,), group.screen)
    return simulator.show(alone, len(images), make, lambda rates: rates.mean(1))[index] * group.screen.bin_rate


def _of_norm(images: np.ndarray, norm: float) -> np.ndarray:
    images = images.astype(float)
    for _ in range(4):
        images = np.clip(images * norm / np.sqrt((images**2).sum((1, 2), keepdims=True)), -GREY, GREY)
    return images


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Difference of two orientations, degrees, 0 to 90."""
    return np.abs((a - b + 90) % 180 - 90)


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


if __name__ == "__main__":
    main()
