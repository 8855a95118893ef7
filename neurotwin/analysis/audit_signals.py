"""Checks of what surrounds the responses: behaviour, counts of frames, and what sessions must have in common."""

from collections.abc import Sequence

import numpy as np

from .audit_base import Finding, Recording, some
from .audit_stimuli import grey_levels

__all__ = ["check_behavior", "check_frame_counts", "check_scales"]

_CLIPPED = 0.01  # share of bins at the very end of the range
_PILE = 5.0  # times the bins of a usual value: a signal that is merely coarse has fewest at its ends
_FEWEST_LEVELS = 10  # of a signal that has a range; licks and states have fewer
_FEWEST_VISITS = 5  # a wheel that stands still at its furthest point was there once
_PAUSE_S = 1.0  # no display drops frames for so long: a pause, which the clock is there to mark
_CONTRAST_RATIO = 10.0  # 0 to 1 beside 0 to 255 is a ratio of 255; displays do not differ by ten
_FROZEN_S = 0.1
_RARE = 0.1  # of the bins of a repeat, beyond a grey level


def check_behavior(recording: Recording) -> list[Finding]:
    """Signals that never change, or that pile up at an end of their range."""
    findings = []
    valid = np.asarray(recording.recorded_valid) & (recording.recorded_trial >= 0)
    for name, signal in recording.behavior.items():
        columns = 1 if len(signal.shape) == 1 else signal.shape[1]
        for column in range(columns):
            values = np.asarray(signal[:] if columns == 1 and len(signal.shape) == 1 else signal[:, column])[valid]
            what = f"behaviour {name}" + (f", column {column}" if columns > 1 else "")
            if len(values) and values.min() == values.max():
                findings.append(Finding(
                    "constant behaviour", "error", recording.name, what, f"always {values[0]:g}",
                    "it was not recorded, or was lost on the way; leave it out of transforms, or convert it again",
                ))  # fmt: skip
                continue
            for end, share in _pile_ups(values):
                findings.append(Finding(
                    "clipped behaviour", "warning", recording.name, what, f"{share:.1%} of bins at {end:g}",
                    "the signal was cut at the end of its range, so what lies beyond is lost; record it with a larger "
                    "range, or mark these bins with valid=False",
                ))  # fmt: skip
    return findings


def check_frame_counts(recording: Recording) -> list[Finding]:
    """Trials with more or fewer frames than their clock has room for, frozen ends, repeats that are not repeats."""
    return [*_clock_counts(recording), *_frozen_ends(recording), *_unlike_repeats(recording)]


def check_scales(recordings: Sequence[Recording]) -> list[Finding]:
    """Bins a second, pixels per degree, frame sizes of one display scale and grey levels that differ in one run."""
    findings, first = [], recordings[0]
    scaled = [r for r in recordings if r.pixels_per_degree]
    spans = [_span(recording) for recording in recordings]
    usual = float(np.median([span for span in spans if span > 0] or [1.0]))
    for recording, span in zip(recordings, spans, strict=True):
        if abs(recording.bin_rate - first.bin_rate) > 1e-3 * first.bin_rate:
            findings.append(Finding(
                "rate", "error", recording.name, "bin rate", f"{recording.bin_rate:g} Hz, {first.name!r} has "
                f"{first.bin_rate:g} Hz", "one core would see two speeds of time; set sampling so that all have one",
            ))  # fmt: skip
        if recording in scaled and abs(recording.pixels_per_degree / scaled[0].pixels_per_degree - 1) > 0.05:
            findings.append(Finding(
                "pixel scale", "warning", recording.name, "pixels per degree", f"{recording.pixels_per_degree:g}, "
                f"{scaled[0].name!r} has {scaled[0].pixels_per_degree:g}",
                "one core would see the same picture at two sizes; resample the frames, or give the session an adapter "
                "that scales",
            ))  # fmt: skip
        if span > 0 and max(span / usual, usual / span) > _CONTRAST_RATIO:
            findings.append(Finding(
                "pixel scale", "error", recording.name, "grey levels", f"range {span:.3g} as a model sees them, usual "
                f"in this run {usual:.3g}", "pixels of 0 to 1 beside 0 to 255, as a rule; convert the frames to uint8",
            ))  # fmt: skip
    return findings


def _span(recording: Recording) -> float:
    """Range of the grey levels of some frames, as a model sees them."""
    bins = np.unique(np.linspace(0, recording.n_bins - 1, 200).astype(int))
    frames = [recording.frames(bins[i : i + 1]) for i in range(len(bins))]
    low, high = np.min([f.min() for f in frames]), np.max([f.max() for f in frames])
    return float(high - low) * abs(recording.pixel_scale[0])


def _pile_ups(values: np.ndarray) -> list[tuple[float, float]]:
    """Ends of the range at which more values lie than chance brings there, and their share. 0 is a natural end."""
    levels, counts = np.unique(values, return_counts=True)
    found = []
    if len(levels) < _FEWEST_LEVELS:
        return found
    for index in (0, -1):
        end, share = levels[index], counts[index] / len(values)
        visits = np.count_nonzero(np.diff(np.r_[False, values == end].astype(np.int8)) == 1)
        piled = counts[index] > _PILE * np.median(counts) and visits >= _FEWEST_VISITS
        if end != 0 and share >= _CLIPPED and piled:
            found.append((float(end), float(share)))
    return found


def _clock_counts(recording: Recording) -> list[Finding]:
    if recording.time is None:
        return []
    trial, time = np.asarray(recording.recorded_trial), np.asarray(recording.time, np.float64)
    inside = (trial[1:] == trial[:-1]) & (trial[1:] >= 0)
    steps = np.diff(time) * recording.recorded_rate
    surplus = np.where(inside & (steps < _PAUSE_S * recording.recorded_rate), steps - 1, 0.0)
    names, code = np.unique(trial[1:], return_inverse=True)
    missing = np.bincount(code, surplus)
    frames = np.bincount(code, inside) + 1
    wrong = np.abs(missing) > 0.75  # a whole frame, up to the jitter of time stamps
    if not wrong.any():
        return []
    worst = int(np.argmax(np.abs(missing)))
    return [Finding(
        "frame count", "error", recording.name, f"trials {some(names[wrong], len(names[names >= 0]))}",
        f"trial {names[worst]}: {int(frames[worst])} frames where its clock has room for "
        f"{frames[worst] + missing[worst]:.1f}",
        "frames were dropped or doubled, or bin_rate is not that of the display; bin stimulus and responses again on "
        "the times at which frames were shown",
    )]  # fmt: skip


def _frozen_ends(recording: Recording) -> list[Finding]:
    """Trials whose last picture stays on far longer than that of the others of its kind."""
    runs = recording.runs()
    runs = runs[runs[:, 1] - runs[:, 0] > 1]
    if len(runs) < 5:
        return []
    if len(runs) > 2000:
        runs = runs[:: -(-len(runs) // 2000)]
    held = np.array([_held_at_end(recording, start, stop) for start, stop in runs])
    kind, length = recording.kind[runs[:, 0]], runs[:, 1] - runs[:, 0]
    usual = np.array([np.median(held[kind == k]) for k in kind])
    rare = np.array([(held[kind == k] >= 5 * np.median(held[kind == k])).mean() for k in kind]) < 0.5
    frozen = (held >= 5 * usual) & (held >= max(5, _FROZEN_S * recording.bin_rate)) & (held < length) & rare
    if not frozen.any():
        return []
    names = recording.trial[runs[frozen, 0]]
    return [Finding(
        "frame count", "error", recording.name, f"trials {some(names, len(runs))}",
        f"the last picture stays for {int(held[frozen].max())} bins, elsewhere for {np.median(usual):.0f}",
        "the trial has fewer frames than responses, and its end was filled; mark those bins with valid=False",
    )]  # fmt: skip


def _held_at_end(recording: Recording, start: int, stop: int) -> int:
    """For how many bins the run has shown its last frame at its end; 1 for a blank, which may stay."""
    last = recording.frames(np.array([stop - 1]))
    if last.max() == last.min():
        return 1

    def equal(bin: int) -> bool:
        return np.array_equal(recording.frames(np.array([bin])), last)

    near, far = 1, 2  # held for `near` bins at least; doubled until it was not, then halved
    while stop - far >= start and equal(stop - far):
        near, far = far, 2 * far
    far = min(far, stop - start + 1)
    while far - near > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if equal(stop - middle) else (near, middle)
    return near


def _unlike_repeats(recording: Recording, most: int = 200) -> list[Finding]:
    """Trials whose frames are not those of the other repeats, where the other repeats agree."""
    repeat = np.asarray(recording.repeat_id)
    ids, counts = np.unique(repeat[repeat >= 0], return_counts=True)
    ids = ids[counts >= 3]
    if not len(ids):
        return []
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, most).astype(int))]
    low, high = grey_levels(recording)
    compared: dict[int, list[bool]] = {}
    order = np.argsort(repeat, kind="stable")
    for first, last in zip(
        np.searchsorted(repeat[order], ids), np.searchsorted(repeat[order], ids, "right"), strict=True
    ):
        bins = np.sort(order[first:last][:100])
        frames = np.concatenate([recording.frames(bins[i : i + 1]) for i in range(len(bins))]).reshape(len(bins), -1)
        distance = np.sqrt(np.square(frames - np.median(frames, axis=0)).mean(axis=1))
        for trial, unlike in zip(recording.trial[bins].tolist(), distance > 2 * (high - low) / 255, strict=True):
            compared.setdefault(trial, []).append(bool(unlike))
    names, share = np.array(list(compared)), np.array([np.mean(flags) for flags in compared.values()])
    odd = share > 0.5
    if np.median(share) > _RARE or not odd.any():  # a gaze that moves makes all repeats differ
        return []
    return [Finding(
        "frame count", "error", recording.name, f"trials {some(names[odd], len(names))}",
        f"{share[odd].max():.0%} of frames differ from the other repeats",
        "frames of the trial are shifted or of another clip; correct repeat_id, or its frames",
    )]  # fmt: skip
