"""Draw `images/demo_v1.png`: what shows that the demo sessions look like V1. Takes about half a minute."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from neurotwin.data.session import Session
from neurotwin.data.simulate import BIN_RATE, DEMO_SESSIONS, FRAME_SIZE, Units, draw_units, simulate_session

__all__ = ["main", "modulation_ratios"]

PATH = Path(__file__).parent / "images" / "demo_v1.png"
SIMPLE, COMPLEX, GREY = "tab:orange", "tab:blue", "0.55"


def main(path: Path = PATH) -> None:
    """Simulate the roster and draw the figure."""
    matplotlib.use("Agg")
    sessions = [simulate_session(name) for name in DEMO_SESSIONS]
    units = [draw_units(name) for name in DEMO_SESSIONS]
    complexity = np.concatenate([u.complexity for u in units])
    # What the legend calls complex is the model's parameter; F1/F0 is measured.
    is_complex = complexity > 0.5

    figure = plt.figure(figsize=(14, 10), layout="constrained")
    grid = figure.add_gridspec(3, 12)
    draw_frames([figure.add_subplot(grid[0, 2 * i : 2 * i + 2]) for i in range(3)], sessions[0])
    draw_gaze(figure.add_subplot(grid[0, 6:]), sessions[0])
    filters = grid[1, :6].subgridspec(2, 3)
    draw_filters([figure.add_subplot(filters[row, i]) for i in range(3) for row in range(2)], sessions[0], units[0])
    draw_repeats(figure.add_subplot(grid[1, 6:]), sessions[0], units[0])
    panels = [figure.add_subplot(grid[2, 3 * i : 3 * i + 3]) for i in range(4)]
    ratios = np.concatenate([modulation_ratios(u) for u in units])
    draw_histogram(panels[0], ratios, is_complex, np.linspace(0, 2, 17))
    panels[0].axvline(1, color="k", lw=0.8, ls=":")
    panels[0].set(xlabel="F1/F0, drifting grating", ylabel="units", title="Modulation ratio")
    rates = np.concatenate([s.true_rate.mean(0) * BIN_RATE for s in sessions])
    draw_histogram(panels[1], rates, is_complex, np.geomspace(2, 50, 15))
    panels[1].set(xscale="log", xticks=[2, 5, 10, 20, 50], xticklabels=[2, 5, 10, 20, 50])
    panels[1].minorticks_off()
    panels[1].set(xlabel="mean rate (Hz)", ylabel="units", title="Rates")
    draw_saccades(panels[2], sessions, units)
    draw_oracle(panels[3], sessions, units, is_complex)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=80)


def draw_frames(axes: list[Axes], session: Session) -> None:
    for ax, kind in zip(axes, ("backimage", "gaborium", "fixrsvp"), strict=True):
        bins = np.flatnonzero((session.stimulus_type == kind) & (session.trial >= 0))
        contrasts = session.stimulus[bins[::60]].std((1, 2))
        chosen = bins[::60][np.argsort(contrasts)[len(contrasts) * 9 // 10]]
        ax.imshow(session.stimulus[chosen], cmap="gray", vmin=0, vmax=255, extent=(-0.5, 0.5, -0.5, 0.5))
        ax.set(title=kind, xlabel="degrees", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])


def draw_gaze(ax: Axes, session: Session) -> None:
    trial = session.trial[(session.stimulus_type == "backimage") & (session.trial >= 0)][0]
    eyepos = session.behavior["eyepos"][session.trial == trial]
    seconds = np.arange(len(eyepos)) / BIN_RATE
    ax.plot(seconds, eyepos[:, 0], color="k", lw=1, label="right")
    ax.plot(seconds, eyepos[:, 1], color=GREY, lw=1, label="up")
    ax.set(xlabel="time in trial (s)", ylabel="gaze (degrees)", title="Gaze in free viewing of a photograph")
    ax.set_xlim(0, seconds[-1])
    ax.legend(frameon=False, loc="upper right", ncols=2)


def draw_filters(axes: list[Axes], session: Session, units: Units) -> None:
    """Spike-triggered average of gaborium beside the true filter, for two simple units and a complex one."""
    flashed = (session.stimulus_type == "gaborium") & (session.trial >= 0) & session.valid
    order = np.argsort(units.complexity - units.amplitude / 200)
    filters = units.filters()
    for pair, (unit, label) in enumerate(((order[0], "simple"), (order[1], "simple"), (order[-1], "complex"))):
        lag = int(np.argmax((filters[unit] ** 2).sum((1, 2))))
        bins = np.flatnonzero(flashed)
        ago = filters.shape[1] - 1 - lag
        bins = bins[bins >= ago]
        counts = session.responses[bins, unit].astype(np.float32)
        frames = session.stimulus[bins - ago].astype(np.float32) - 127
        average = np.tensordot(counts - counts.mean(), frames, axes=1) / counts.sum()
        ms = 1000 * ago / BIN_RATE
        images = ((average, f"STA, {label}, {ms:.0f} ms ago"), (filters[unit, lag], "true filter"))
        for ax, (image, title) in zip(axes[2 * pair : 2 * pair + 2], images, strict=True):
            limit = np.abs(image).max()
            ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set_title(title, fontsize=9)
            ax.set(xticks=[], yticks=[])


def draw_repeats(ax: Axes, session: Session, units: Units) -> None:
    unit = int(np.argmax(units.amplitude * (units.complexity < 0.2)))
    length = session.repeat_id.max() + 1
    spikes = session.responses[session.repeat_id >= 0, unit].reshape(-1, length)
    rate = session.true_rate[session.repeat_id >= 0, unit].reshape(-1, length) * BIN_RATE
    seconds = np.arange(length) / BIN_RATE
    bins = 4
    psth = spikes.mean(0).reshape(-1, bins).mean(1) * BIN_RATE
    ax.bar(seconds[::bins], psth, bins / BIN_RATE, align="edge", color="0.8", label=f"PSTH, {len(spikes)} repeats")
    ax.plot(seconds, rate.mean(0), color=SIMPLE, lw=1.5, label="true rate")
    top = max(psth.max(), rate.mean(0).max())
    trials, times = np.nonzero(spikes)
    ax.plot(seconds[times], top * (1.08 + 0.75 * trials / len(spikes)), "|", ms=2.5, mew=0.8, color="k")
    ax.set(xlabel="time in clip (s)", ylabel="rate (Hz)", title="Repeated clip, one simple unit", xlim=(0, seconds[-1]))
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= top])
    ax.set_ylim(0, 2.1 * top)
    ax.legend(frameon=False, loc="upper right", ncols=2, fontsize=9)


def draw_histogram(ax: Axes, values: np.ndarray, is_complex: np.ndarray, edges: np.ndarray) -> None:
    groups = [values[~is_complex], values[is_complex]]
    ax.hist(groups, edges, stacked=True, color=[SIMPLE, COMPLEX], label=["simple", "complex"])
    ax.margins(y=0.25)  # room for the legend
    ax.legend(frameon=False, ncols=2, loc="upper center")


def draw_saccades(ax: Axes, sessions: list[Session], units: list[Units]) -> None:
    """Rate around saccade onset in free viewing, over the mean rate; and the part that is the behavioural gain."""
    window = np.arange(-24, 72)
    rates, gains = [], []
    for session, population in zip(sessions, units, strict=True):
        viewing = (session.stimulus_type == "backimage") & (session.trial >= 0)
        fast = np.hypot(*session.behavior["eyevel"].T) > 30
        onsets = np.flatnonzero(fast[1:] & ~fast[:-1] & viewing[1:] & viewing[:-1]) + 1
        onsets = onsets[onsets + window[-1] < session.n_bins]
        within = session.trial[onsets[:, None] + window[[0, -1]]] == session.trial[onsets][:, None]
        onsets = onsets[within.all(1)]
        around = onsets[:, None] + window
        gain = population.gain(session.behavior["pupil"], session.behavior["eyevel"])
        for signal, found in ((session.responses, rates), (gain, gains)):
            found.append((signal[around].mean(0) / signal[viewing].mean(0)).mean(1))
    ax.axhline(1, color="k", lw=0.8, ls=":")
    ax.plot(window / BIN_RATE * 1000, np.mean(rates, axis=0), color="k", label="spikes")
    ax.plot(window / BIN_RATE * 1000, np.mean(gains, axis=0), color="tab:green", label="gain alone")
    ax.set(xlabel="time from saccade onset (ms)", ylabel="rate / mean rate", title="Saccade-triggered rate")
    ax.legend(frameon=False)


def draw_oracle(ax: Axes, sessions: list[Session], units: list[Units], is_complex: np.ndarray) -> None:
    """Bits per spike at 120 Hz of the true rate, and of the true rate at constant gain."""
    full, sighted = [], []
    for session, population in zip(sessions, units, strict=True):
        used = (session.trial >= 0) & session.valid
        gain = population.gain(session.behavior["pupil"], session.behavior["eyevel"])
        still = session.true_rate / gain
        still *= session.true_rate[used].mean(0) / still[used].mean(0)
        for rate, found in ((session.true_rate, full), (still, sighted)):
            pairs = [
                values.reshape(-1, 2, values.shape[1]).sum(1) for values in (session.responses.astype(float), rate)
            ]
            found.append(bits_per_spike(*(values[used.reshape(-1, 2).all(1)] for values in pairs)))
    full, sighted = np.concatenate(full), np.concatenate(sighted)
    for group, color in ((~is_complex, SIMPLE), (is_complex, COMPLEX)):
        ax.plot(full[group], sighted[group], "o", ms=4, color=color, alpha=0.8)
    ax.axline((0, 0), slope=1, color="k", lw=0.8, ls=":")
    share = 1 - np.median(sighted / full)
    ax.set(xlabel="true rate (bits/spike)", ylabel="at constant gain (bits/spike)")
    ax.set(title=f"Oracle: median {np.median(full):.2f} bits/spike,\n{share:.0%} of it behaviour", xlim=0, ylim=0)


def bits_per_spike(spikes: np.ndarray, rate: np.ndarray) -> np.ndarray:
    mean = spikes.mean(0)
    return (spikes * np.log(rate / mean) - rate + mean).sum(0) / np.log(2) / spikes.sum(0)


def modulation_ratios(units: Units, temporal_frequency: float = 6.0) -> np.ndarray:
    """F1/F0 of each unit's drive by the grating that suits it, in its better direction, (U,)."""
    n_cycle = round(BIN_RATE / temporal_frequency)
    axis = np.arange(FRAME_SIZE) - (FRAME_SIZE - 1) / 2
    cycles = np.arange(3 * n_cycle)[:, None, None] / n_cycle
    ratios = []
    for unit, (angle, frequency) in enumerate(zip(units.orientation, units.frequency, strict=True)):
        along = axis * np.cos(angle) + axis[:, None] * np.sin(angle)
        responses = []
        for sign in (-1, 1):
            frames = np.rint(127 + 120 * np.cos(2 * np.pi * (frequency * along + sign * cycles)))
            responses.append(units.drive(frames.astype(np.uint8))[-n_cycle:, unit])
        best = max(responses, key=np.mean)
        ratios.append(2 * np.abs(np.fft.rfft(best)[1]) / best.sum())
    return np.array(ratios)


if __name__ == "__main__":
    main()
