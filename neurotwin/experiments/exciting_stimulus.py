"""The image or movie that excites a unit most or least, for all units at once, ready for a monitor."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from skimage.io import imsave
from torch import Tensor

from ..analysis.plots import readout_maps
from ..config import NonNegative, PositiveInt, register
from .base import Experiment, Result
from .presenter import ExperimentError, Group, Presenter, Screen

__all__ = ["ExcitingStimulus"]


@register("experiment", "exciting_stimulus")
class ExcitingStimulus(Experiment):
    """The image or movie of fixed contrast that excites each unit most, or least, by gradient ascent.

    An image is shown for some time after grey, and its rate is the mean over that time; a movie fills all that a
    prediction sees, and its rate is that of the last bin (Walker et al. 2019; Bashivan et al. 2019). A trained twin
    also answers to fine patterns that no photograph has. Three things keep the ascent from them: every step is
    low-passed in space, the stimulus is shifted by a few pixels at random from step to step (Olah et al. 2017), and the
    best of several starts is kept. All units are followed at once, in batches.

    Stimuli are rounded to whole 8-bit pixels, and the rates in the table are those of the rounded ones. The manifest
    says how to show them: size in pixels and degrees, timing, grey level.
    """

    kind: Literal["image", "movie"] = Field("image", description="A still image, or a movie.")
    aim: Literal["most", "least"] = Field("most", description="Excite most, or least.")
    comparable = ()  # members are shown one stimulus instead: `disagreement_hz`

    units: tuple[int | str, ...] = Field((), description="Ids of the units; default all.")
    weights: tuple[float, ...] | None = Field(
        None, description="One stimulus for Σ weight × rate of `units`: a direction in the space of the population."
    )
    contrast: float = Field(0.1, gt=0, le=1, description="Root mean square about grey over the screen's amplitude.")
    seconds: float = Field(0.1, gt=0, description="image: how long it is shown, s.")
    n_steps: PositiveInt = Field(60, description="Steps of ascent.")
    step_size: float = Field(0.2, gt=0, description="Of the first step, in norms of the stimulus; falls to a tenth.")
    n_starts: PositiveInt = Field(4, description="Starts from noise; the best is kept.")
    cutoff: NonNegative = Field(
        0.25, description="Steps are multiplied by exp(−(f/cutoff)⁴), f in cycles per pixel; 0: they are not."
    )
    jitter: int = Field(
        1, ge=0, description="Pixels by which the stimulus is shifted at random in the first 70% of the steps."
    )
    batch: PositiveInt = Field(96, description="Stimuli that are followed at a time.")
    seed: int = Field(0, description="Of starts and shifts.")

    def measure(self, presenter: Presenter) -> Result:
        presenter.require_gradient("exciting_stimulus")
        result, rows = Result(), []
        found = 0
        for group in presenter.groups:
            targets = self._targets(presenter, group)
            found += len(targets)
            if not targets:
                continue
            search = _Search(self, presenter, group)
            stimuli, rates = search.best(targets)
            blank = search.rates_of(targets, torch.zeros_like(stimuli))
            for target, stimulus, rate, least, grey in zip(targets, stimuli, *rates, blank, strict=True):
                rows.append(self._row(target, group.screen, stimulus, (rate, least, grey)))
            if len(presenter.twin.members) > 1:  # how far members agree that this stimulus excites
                each = [_Search(self, one, group).rates_of(targets, stimuli) for one in presenter.alone]
                for row, spread in zip(rows[-len(targets) :], np.std(each, axis=0), strict=True):
                    row["disagreement_hz"] = float(spread)
            name = "" if len(presenter.groups) == 1 else f".{presenter.spec(group.sessions[0]).name}"
            pixels = _pixels(stimuli, group.screen)
            result.arrays[f"stimuli{name}"] = pixels
            frames = ("frame",) if self.kind == "movie" else ()
            result.axes[f"stimuli{name}"] = (f"stimulus{name}", *frames, "channel", "y", "x")
            result.figures[f"stimuli{name}"] = _figure(pixels, [t.label for t in targets], group.screen)
            for one, row in zip(pixels, rows[-len(targets) :], strict=True):
                result.files[row["file"]] = _writer(one)
        if not found:
            raise ExperimentError(f"experiment exciting_stimulus: no session has the units {list(self.units)}")
        manifest = {"kind": self.kind, "aim": self.aim, "stimuli": rows}
        result.files["manifest.json"] = lambda path: _write_json(path, manifest)
        result.tables["units"] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        return result

    def _targets(self, presenter: Presenter, group: Group) -> list["_Target"]:
        """What stimuli are sought for, in this group."""
        known = [
            (index, column, unit)
            for index in group.sessions
            for column, unit in enumerate(presenter.spec(index).unit_ids)
            if not self.units or unit in self.units
        ]
        if self.weights is None:
            return [_Target(presenter.spec(i).name, str(unit), ((i, column, 1.0),), True) for i, column, unit in known]
        chosen = [next(((i, c) for i, c, unit in known if unit == wanted), None) for wanted in self.units]
        if len(self.weights) != len(self.units) or not self.units:
            raise ExperimentError(f"option weights: {len(self.weights)} for {len(self.units)} units; give one for each")
        if None in chosen:
            return []
        parts = tuple((i, c, w) for (i, c), w in zip(chosen, self.weights, strict=True))  # type: ignore[misc]
        return [_Target(presenter.spec(parts[0][0]).name, "+".join(map(str, self.units)), parts, False)]

    def _row(self, target: "_Target", screen: Screen, stimulus: Tensor, rates: tuple[float, ...]) -> dict[str, Any]:
        safe = re.sub(r"[^\w.+-]", "_", target.label)
        shown = stimulus.shape[0] if self.kind == "movie" else self.bins(screen)
        height, width = screen.frame_shape[1:]
        return {
            "session": target.session, "unit_id": target.label, "rate_hz": rates[0], "worst_start_hz": rates[1],
            "blank_hz": rates[2], "contrast": float(stimulus.square().mean().sqrt()) / screen.amplitude,
            "file": f"stimuli/{target.session}/{safe}.{'npy' if self.kind == 'movie' else 'png'}",
            "height_px": height, "width_px": width, "height_deg": float(screen.degrees(height)),
            "width_deg": float(screen.degrees(width)), "grey": 127, "frames": shown, "frame_rate_hz": screen.bin_rate,
        }  # fmt: skip

    def bins(self, screen: Screen) -> int:
        """Frames for which an image is shown."""
        return max(1, round(self.seconds * screen.bin_rate))


@dataclass(frozen=True)
class _Target:
    """A unit, or a direction in the space of some: (session, column, weight) each; log: climb the logarithm."""

    session: str
    label: str
    parts: tuple[tuple[int, int, float], ...]
    log: bool


class _Search:
    """Gradient ascent for the units of one group."""

    def __init__(self, options: ExcitingStimulus, presenter: Presenter, group: Group):
        self.options, self.presenter, self.group, self.screen = options, presenter, group, group.screen
        self.like = presenter.twin.like
        movie = options.kind == "movie"
        frames = (presenter.twin.context + 1,) if movie else ()
        self.shape = (*frames, *group.screen.frame_shape)
        self.norm = options.contrast * self.screen.amplitude * float(np.sqrt(np.prod(self.shape)))
        height, width = self.shape[-2:]
        f = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)).to(self.like)
        self.gain = torch.exp(-((f / options.cutoff) ** 4)) if options.cutoff else torch.ones_like(f)

    def best(self, targets: list[_Target]) -> tuple[Tensor, tuple[np.ndarray, np.ndarray]]:
        """Of each target the best stimulus about grey, rounded, and the rates of its best and its worst start, Hz."""
        generator = torch.Generator().manual_seed(self.options.seed)
        sign = 1.0 if self.options.aim == "most" else -1.0
        tried = []
        for _ in range(self.options.n_starts):
            parts = [self._ascend(part, generator, sign) for part in _pieces(targets, self.options.batch)]
            x = torch.cat(parts)
            tried.append((x, self.rates_of(targets, x)))
        rates = np.stack([rate for _, rate in tried])
        winner = (sign * rates).argmax(0)
        chosen = torch.stack([tried[start][0][row] for row, start in enumerate(winner)])
        rows = np.arange(len(targets))
        return chosen, (rates[winner, rows], rates[(sign * rates).argmin(0), rows])

    def rates_of(self, targets: list[_Target], x: Tensor) -> np.ndarray:
        """Rates, or weighted sums of rates, in Hz, of stimuli about grey, one for each target."""
        values = []
        with torch.no_grad():
            for part, own in zip(x.split(self.options.batch), _pieces(targets, self.options.batch), strict=True):
                values.append(self._value(own, part).double().cpu().numpy())
        return np.concatenate(values) * self.screen.bin_rate

    def _ascend(self, targets: list[_Target], generator: torch.Generator, sign: float) -> Tensor:
        options = self.options
        x = self._projected(self._smooth(torch.randn(len(targets), *self.shape, generator=generator).to(self.like)))
        for step in range(options.n_steps):
            x.requires_grad_()
            # The last steps are for the stimulus as it will be shown.
            reach = options.jitter if step < 0.7 * options.n_steps else 0
            shift = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            value = self._value(targets, _shifted(x, *shift))
            logs = torch.tensor([target.log for target in targets], device=value.device)
            # The logarithm: its gradient does not vanish where a unit is nearly silent.
            goal = torch.where(logs, value.clamp_min(1e-12).log(), value)
            (gradient,) = torch.autograd.grad(sign * goal.sum(), x)
            gradient = self._smooth(gradient)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, *(1,) * len(self.shape))
            size = options.step_size * 0.1 ** (step / options.n_steps)
            x = self._projected(x.detach() + size * self.norm * gradient / length)
        return (x + self.screen.grey).round() - self.screen.grey if self.screen.amplitude > 100 else x

    def _value(self, targets: list[_Target], x: Tensor) -> Tensor:
        """Rate of each target to its own stimulus about grey, responses per bin."""
        context = self.presenter.twin.context
        if self.options.kind == "movie":
            movies = x + self.screen.grey
        else:
            shown = self.options.bins(self.screen)
            blank = self.screen.blank(len(x), context, self.like)
            movies = torch.cat([blank, (x + self.screen.grey)[:, None].expand(-1, shown, -1, -1, -1)], dim=1)
        rates = self.presenter.rates(self.group, movies)
        values = []
        for row, target in enumerate(targets):
            values.append(sum(weight * rates[index][row, :, column].mean() for index, column, weight in target.parts))
        return torch.stack(values)

    def _smooth(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.gain, s=self.shape[-2:])

    def _projected(self, x: Tensor) -> Tensor:
        """Of the norm asked for, within the range of the screen; where both cannot be, within the range."""
        for _ in range(4):
            length = x.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, *(1,) * len(self.shape))
            x = (x * (self.norm / length)).clamp(-self.screen.amplitude, self.screen.amplitude)
        return x


# --------------------------------------------------------------------------------------------------------------------


def _pieces(targets: list[_Target], size: int) -> list[list[_Target]]:
    return [targets[first : first + size] for first in range(0, len(targets), size)]


def _shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """Moved by whole pixels; grey comes in from the edge."""
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)))
    return padded[..., max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]


def _pixels(stimuli: Tensor, screen: Screen) -> np.ndarray:
    """As 8-bit pixels around 127."""
    values = stimuli.cpu().numpy() / screen.amplitude * 127 + 127
    return np.clip(np.rint(values), 0, 254).astype(np.uint8)


def _writer(pixels: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if pixels.ndim == 4:
            np.save(path, pixels)
        else:
            image = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1)
            imsave(path, image, check_contrast=False)

    return write


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _figure(pixels: np.ndarray, labels: list[str], screen: Screen):
    def draw():
        images = pixels.astype(float) - 127
        if images.ndim == 5:  # of a movie, the frame of the highest contrast
            images = images[np.arange(len(images)), (images**2).sum((2, 3, 4)).argmax(1)]
        return readout_maps(images.mean(1), labels=labels)

    return draw
