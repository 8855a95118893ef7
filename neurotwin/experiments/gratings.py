"""Responses to gratings: direction, spatial and temporal frequency; then contrast, size and plaids at what is best."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ..analysis.plots import tuning_curve
from ..config import PositiveInt, register
from .base import Experiment, Result
from .maps import gradients, noise_movies, place
from .presenter import ExperimentError, Group, Presenter, Screen
from .tables import UnitTable
from .tuning import (
    direction_selectivity,
    fit_contrast,
    fit_direction,
    fit_frequency,
    gratings,
    harmonics,
    orientation_selectivity,
)

__all__ = ["Gratings"]


@register("experiment", "gratings")
class Gratings(Experiment):
    """Drifting gratings of all directions × spatial × temporal frequencies, and what each unit prefers.

    F0 is the mean rate over whole cycles and F1 the amplitude at the temporal frequency, both after the twin's memory
    has filled with the grating. A unit's response is F1 where F1 > F0 at its best grating (a simple cell, Skottun et
    al. 1991), else F0 above the rate to grey. Preferred values are peaks of fitted curves, not of the grid. Spatial
    frequency is fitted to the mean over the preferred and the opposite direction of drift, in which a twin errs in
    different ways. At what a unit prefers, contrast, the diameter of a disc around its receptive field, and a second
    grating across the first are varied.
    """

    periods = {"preferred_direction_deg": 360.0, "preferred_orientation_deg": 180.0}

    n_directions: int = Field(16, ge=4, multiple_of=2, description="Directions of drift, evenly spaced.")
    spatial_frequencies: tuple[PositiveFloat, ...] = Field(
        (), description="Cycles per degree, or per pixel where degrees are not known. Default: 8 from 1.5 cycles in a "
        "frame to 0.35 per pixel, evenly spaced in octaves.",
    )  # fmt: skip
    temporal_frequencies: tuple[float, ...] = Field(
        (2.0, 4.0, 8.0, 16.0), description="Hz; 0 is a still grating, shown in 4 phases."
    )
    contrast: float = Field(
        0.5, gt=0, le=1, description="Of the gratings, but for the contrast response; about that of photographs."
    )
    seconds: float = Field(0.5, gt=0, description="How long responses are measured, s; rounded up to whole cycles.")
    contrasts: tuple[float, ...] = Field((0.05, 0.1, 0.2, 0.4, 0.7, 1.0), description="Of the contrast response.")
    n_diameters: int = Field(8, ge=0, description="Diameters of the disc, up to the frame's; 0: no size tuning.")
    plaids: bool = Field(True, description="Add a grating at a right angle, at half contrast each.")
    n_movies: PositiveInt = Field(16, description="Noise movies around which receptive fields are found for size.")

    def measure(self, presenter: Presenter) -> Result:
        if self.n_diameters:
            presenter.require_gradient("gratings with n_diameters > 0")
        table, result = UnitTable(), Result()
        for group in presenter.groups:
            grid = self._grid(group.screen)
            f0, f1, blank = self._first_stage(presenter, group, grid)
            for index in group.sessions:
                spec = presenter.spec(index)
                units = _Preferred.of(grid, f0[index], f1[index], blank[index])
                columns = units.columns(group.screen)
                columns |= self._second_stage(presenter, Group((index,), group.screen), units, result)
                table.add(spec, columns)
                for name, values in (("f0_hz", f0[index]), ("f1_hz", f1[index])):
                    result.arrays[f"{name}.{spec.name}"] = values.astype(np.float32)
                    result.axes[f"{name}.{spec.name}"] = (
                        "temporal_frequency", "spatial_frequency", "direction", f"unit.{spec.name}",
                    )  # fmt: skip
                result.figures[f"direction.{spec.name}"] = _figure(grid.directions, units.curve, spec.unit_ids)
            result.arrays |= {
                "direction": grid.directions, "spatial_frequency": grid.shown(group.screen),
                "temporal_frequency": grid.temporal,
            }  # fmt: skip
        result.axes |= {name: (name,) for name in ("direction", "spatial_frequency", "temporal_frequency")}
        result.tables["units"] = table.columns()
        return result

    def _grid(self, screen: Screen) -> "_Grid":
        _, height, width = screen.frame_shape
        if min(height, width) < 4:
            raise ExperimentError("experiment gratings: frames of less than 4 pixels a side show no grating")
        frequencies = np.geomspace(1.5 / max(height, width), 0.35, 8)
        if self.spatial_frequencies:
            frequencies = np.sort(np.asarray(self.spatial_frequencies)) / (screen.pixels_per_degree or 1.0)
            if frequencies.max() > 0.5:
                raise ExperimentError(
                    f"option spatial_frequencies: {max(self.spatial_frequencies):g} is above half a cycle per pixel"
                )
        temporal = np.sort(np.asarray(self.temporal_frequencies, float))
        if not len(temporal) or temporal.min() < 0 or temporal.max() >= screen.bin_rate / 2:
            raise ExperimentError(
                f"option temporal_frequencies: give some from 0 to below {screen.bin_rate / 2:g} Hz, half the bin rate"
            )
        return _Grid(360.0 * np.arange(self.n_directions) / self.n_directions, frequencies, temporal)

    def _timing(self, screen: Screen, hertz: float) -> tuple[int, float]:
        """Bins that are measured and cycles per bin: whole cycles in whole bins, so what is shown may differ a bit."""
        if hertz == 0:
            return max(1, round(self.seconds * screen.bin_rate)), 0.0
        cycles = max(1, int(np.ceil(self.seconds * hertz)))
        bins = max(round(cycles * screen.bin_rate / hertz), 2 * cycles + 1)
        return bins, cycles / bins

    def _first_stage(self, presenter: Presenter, group: Group, grid: "_Grid"):
        """F0 and F1, (temporal, spatial, direction, U), and the rate to grey, (U,), by session, Hz."""
        screen, context = group.screen, presenter.twin.context
        directions, frequencies = (
            axis.ravel() for axis in np.meshgrid(grid.directions, grid.frequencies, indexing="xy")
        )
        stacked: dict[int, list[np.ndarray]] = {index: [] for index in group.sessions}
        for hertz in grid.temporal:
            bins, per_bin = self._timing(screen, hertz)
            phases = (0.0,) if hertz else (0.0, 90.0, 180.0, 270.0)
            kept = []
            for phase in phases:

                def make(rows: np.ndarray, bins=bins, per_bin=per_bin, phase=phase) -> Tensor:
                    return gratings(
                        screen, context + bins, direction=directions[rows], frequency=frequencies[rows],
                        per_bin=per_bin, contrast=self.contrast, phase=phase,
                    )  # fmt: skip

                kept.append(presenter.show(group, len(directions), make, _measured(per_bin)))
            for index in group.sessions:
                values = np.stack([part[index] for part in kept])
                mean = values[0]
                if not hertz:  # of a still grating, F1 is the amplitude over its phases
                    wave = np.exp(1j * np.deg2rad(phases))[:, None, None]
                    mean = np.stack([values[:, :, 0].mean(0), 2 * np.abs((values[:, :, 0] * wave).mean(0))], 1)
                stacked[index].append(mean.reshape(len(grid.frequencies), len(grid.directions), 2, -1))
        grey = presenter.show(
            group, 1, lambda rows: screen.blank(1, context + 1, presenter.twin.like), lambda rates: rates[:, -1]
        )
        f0 = {index: np.stack(parts)[..., 0, :] * screen.bin_rate for index, parts in stacked.items()}
        f1 = {index: np.stack(parts)[..., 1, :] * screen.bin_rate for index, parts in stacked.items()}
        return f0, f1, {index: values[0] * screen.bin_rate for index, values in grey.items()}

    def _second_stage(self, presenter: Presenter, group: Group, units: "_Preferred", result: Result):
        """Contrast response, size tuning and plaids of the units of one session."""
        columns: dict[str, np.ndarray] = {}
        screen, (index,) = group.screen, group.sessions
        name = presenter.spec(index).name
        if self.contrasts:
            levels = np.sort(np.asarray(self.contrasts))
            curve = self._varied(presenter, group, units, len(levels), contrast=lambda u, k: levels[k])
            fits = [fit_contrast(levels, values) for values in curve.T]
            columns |= {
                "c50": np.array([f.preferred for f in fits]),
                "contrast_exponent": np.array([f.width for f in fits]),
            }
            result.arrays[f"contrast_response_hz.{name}"], result.arrays["contrast"] = curve, levels
            result.axes |= {f"contrast_response_hz.{name}": ("contrast", f"unit.{name}"), "contrast": ("contrast",)}
        if self.n_diameters:
            centers = _centers(presenter, group, index, self.n_movies)
            side = min(screen.frame_shape[1:])
            diameters = np.geomspace(3.0, 1.5 * side, self.n_diameters)
            curve = self._varied(
                presenter,
                group,
                units,
                len(diameters),
                center=lambda u, k: centers[u],
                radius=lambda u, k: diameters[k] / 2,
            )
            best = curve.argmax(0)
            top = curve.max(0)
            columns["preferred_diameter_px"] = diameters[best]
            columns["preferred_diameter_deg"] = np.asarray(screen.degrees(diameters[best]))
            columns["surround_suppression"] = np.where(top > 0, (top - curve[-1]) / np.where(top > 0, top, 1), np.nan)
            result.arrays[f"size_tuning_hz.{name}"], result.arrays[f"diameter_px.{name}"] = curve, diameters
            result.axes |= {
                f"size_tuning_hz.{name}": (f"diameter.{name}", f"unit.{name}"),
                f"diameter_px.{name}": (f"diameter.{name}",),
            }  # fmt: skip
        if self.plaids:
            alone = self._varied(presenter, group, units, 1, contrast=lambda u, k: self.contrast / 2)[0]
            both = self._varied(presenter, group, units, 1, contrast=lambda u, k: self.contrast / 2, plaid=True)[0]
            columns["cross_orientation_suppression"] = np.where(
                alone > 0, 1 - both / np.where(alone > 0, alone, 1), np.nan
            )
        return columns

    def _varied(self, presenter: Presenter, group: Group, units: "_Preferred", n: int, *, plaid: bool = False, **vary):
        """Responses (n, U), Hz, of each unit to its preferred grating, varied: functions of unit and step."""
        (index,), screen = group.sessions, group.screen
        curve, context = np.full((n, len(units.hertz)), np.nan), presenter.twin.context
        for hertz in np.unique(units.hertz):
            bins, per_bin = self._timing(screen, hertz)
            mine = np.flatnonzero(units.hertz == hertz)
            pairs = [(unit, step) for unit in mine for step in range(n)]

            def make(rows: np.ndarray, pairs=pairs, bins=bins, per_bin=per_bin) -> Tensor:
                chosen = [pairs[row] for row in rows]
                own = np.array([unit for unit, _ in chosen])
                more = {key: np.array([value(u, k) for u, k in chosen]) for key, value in vary.items()}
                settings = {"frequency": units.frequency[own], "per_bin": per_bin, "contrast": self.contrast} | more
                movies = gratings(screen, context + bins, direction=units.direction[own], **settings)
                if plaid:
                    movies = movies + gratings(screen, context + bins, direction=units.direction[own] + 90, **settings)
                    movies = movies - screen.grey
                return movies

            shown = presenter.show(group, len(pairs), make, _measured(per_bin))[index] * screen.bin_rate
            for (unit, step), (f0, f1) in zip(pairs, shown, strict=True):
                simple = units.simple[unit] and hertz > 0
                curve[step, unit] = f1[unit] if simple else f0[unit] - units.blank[unit]
        return curve


@dataclass(frozen=True)
class _Grid:
    """Directions in degrees, spatial frequencies in cycles per pixel, temporal frequencies in Hz."""

    directions: np.ndarray
    frequencies: np.ndarray
    temporal: np.ndarray

    def shown(self, screen: Screen) -> np.ndarray:
        """Spatial frequencies in cycles per degree, or per pixel where degrees are not known."""
        return self.frequencies * (screen.pixels_per_degree or 1.0)


@dataclass(frozen=True)
class _Preferred:
    """What the units of a session prefer: (U,) each, but for the curve of responses over directions, (D, U)."""

    direction: np.ndarray
    frequency: np.ndarray
    hertz: np.ndarray
    simple: np.ndarray
    blank: np.ndarray
    curve: np.ndarray
    measures: dict[str, np.ndarray]

    @classmethod
    def of(cls, grid: _Grid, f0: np.ndarray, f1: np.ndarray, blank: np.ndarray) -> "_Preferred":
        """From F0 and F1 over the grid, (temporal, spatial, direction, U), Hz."""
        n_units = f0.shape[-1]
        evoked = f0 - blank
        flat, units = np.maximum(evoked, f1).reshape(-1, n_units).argmax(0), np.arange(n_units)
        t, s, d = np.unravel_index(flat, f0.shape[:3])
        simple = f1[t, s, d, units] > f0[t, s, d, units]
        response = np.where(simple, f1, evoked)
        curve = response[t, s, :, units].T
        directions = [fit_direction(grid.directions, values) for values in curve.T]
        opposite = (d + len(grid.directions) // 2) % len(grid.directions)
        both = (response[t, :, d, units] + response[t, :, opposite, units]) / 2
        frequencies = [fit_frequency(grid.frequencies, values) for values in both]
        floor = np.maximum(curve, 0)
        ratio = np.divide(
            f1[t, s, d, units], f0[t, s, d, units], out=np.full(n_units, np.nan), where=f0[t, s, d, units] > 0
        )
        direction, frequency = (np.array([fit.preferred for fit in fits]) for fits in (directions, frequencies))
        measures = {
            "direction_width_deg": np.array([fit.width for fit in directions]),
            "direction_fit_r2": np.array([fit.r2 for fit in directions]),
            "spatial_frequency_octaves": np.array([fit.width for fit in frequencies]),
            "spatial_frequency_fit_r2": np.array([fit.r2 for fit in frequencies]),
            "osi": orientation_selectivity(grid.directions, floor),
            "dsi": direction_selectivity(grid.directions, floor),
            "f1_f0": ratio, "response_hz": response[t, s, d, units], "blank_hz": blank,
        }  # fmt: skip
        direction = np.where(np.isnan(direction), grid.directions[d], direction)
        frequency = np.clip(np.where(np.isnan(frequency), grid.frequencies[s], frequency), 0, 0.5)
        return cls(direction, frequency, grid.temporal[t], simple, blank, curve, measures)

    def columns(self, screen: Screen) -> dict[str, np.ndarray]:
        """As columns of a table."""
        return {
            "preferred_direction_deg": self.direction, "preferred_orientation_deg": self.direction % 180,
            "preferred_spatial_frequency_cpp": self.frequency,
            "preferred_spatial_frequency_cpd": np.asarray(screen.cycles_per_degree(self.frequency)),
            "preferred_temporal_frequency_hz": self.hertz, "simple": self.simple.astype(np.int64), **self.measures,
        }  # fmt: skip


def _measured(per_bin: float):
    return lambda rates: harmonics(rates, per_bin)


def _centers(presenter: Presenter, group: Group, index: int, n_movies: int) -> np.ndarray:
    """Centres of the receptive fields, (U, 2): x and y, pixels from the middle; the middle where there is none."""
    rng = np.random.default_rng(0)
    movies = noise_movies(group.screen, n_movies, presenter.twin.context + 1, rng, contrast=0.3, exponent=1.0)
    maps: Iterator[np.ndarray] = gradients(presenter, group, index, movies.to(presenter.twin.like))
    with torch.enable_grad():
        return np.nan_to_num([place((samples.astype(np.float64) ** 2).sum((0, 1, 2)))[:2] for samples in maps])


def _figure(directions: np.ndarray, curve: np.ndarray, unit_ids: tuple):
    """Draws direction tuning of the units that respond most."""
    most = np.sort(np.argsort(-curve.max(0))[:7])

    def draw():
        figure = tuning_curve(directions, curve[:, most], labels=[str(unit_ids[unit]) for unit in most])
        figure.axes[0].set_xlabel("direction of drift (degrees)")
        return figure

    return draw
