"""Convert the rat retina recording of Mahuas et al. (moving bars) to a session file: a movie with repeats.

    python docs/examples/retina_bars/convert.py SOURCE [TARGET]

A segment is a trial, and so is each repeat of the test segment. The movie is one pixel wide: frames of (31, 1).
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from neurotwin import Session

__all__ = ["convert"]

BINS_A_SECOND = 600.0
VALIDATION_EVERY = 10  # segments


def convert(source: Path, target: Path, segments: int | None = None, repeats: int | None = None) -> Path:
    """Write `rat_bars.safetensors`.

    Parameters
    ----------
    source
        Folder with `nonrepeat_data_bars.mat` and `test_data_bars.mat`.
    target
        Folder for the session.
    segments, repeats
        Use the first segments and the first repeats of the test segment only; None: all.
    """
    unique, repeated = (loadmat(source / f"{name}_data_bars.mat") for name in ("nonrepeat", "test"))
    movie = unique["stimulus"][:, 0].transpose(2, 1, 0)[:segments]  # (segments, bins, bars)
    counts = unique["spikes_train"].transpose(2, 1, 0)[:segments]  # (segments, bins, cells)
    test_movie = repeated["stimulus_test"][:, 0].T  # (bins, bars)
    test_counts = repeated["spikes_test"].transpose(2, 1, 0)[:repeats]  # (repeats, bins, cells)
    segments, segment_bins, n_bars = movie.shape
    repeats, test_bins, n_cells = test_counts.shape

    frames = np.concatenate([movie.reshape(-1, n_bars), np.tile(test_movie, (repeats, 1))])
    is_validation = np.arange(segments) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    session = Session(
        name="rat_bars",
        stimulus=255 * frames[:, :, None],
        responses=np.concatenate([counts.reshape(-1, n_cells), test_counts.reshape(-1, n_cells)]),
        bin_rate=BINS_A_SECOND,
        trial=np.repeat(np.arange(segments + repeats), [segment_bins] * segments + [test_bins] * repeats),
        repeat_id=np.concatenate([np.full(segments * segment_bins, -1), np.tile(np.arange(test_bins), repeats)]),
        split=np.repeat(
            np.concatenate([np.where(is_validation, "val", "train"), ["test"]]),
            [segment_bins] * segments + [repeats * test_bins],
        ),
        stimulus_type="bars",
        info={"source": "Mahuas, Isacchini, Marre, Ferrari & Mora, NeurIPS 2020; MIT"},
    )
    print(f"{session.name}: {n_cells} cells, {session.duration / 60:.1f} min, of which {repeats} repeats of the test")
    return session.save(target / f"{session.name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder retina_bars")
    parser.add_argument("target", type=Path, nargs="?", default="data/retina", help="folder for the session")
    arguments = parser.parse_args()
    convert(arguments.source, arguments.target)
