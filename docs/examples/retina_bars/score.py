"""Score a trained model on the repeated segment: bits per spike, and correlation with the mean over repeats (PSTH).

    python docs/examples/retina_bars/score.py CHECKPOINT

The first bins of the segment, which lack the frames that a prediction needs, are left out of both.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr

from neurotwin import Session, load_twin
from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.prepare import prepare

__all__ = ["PUBLISHED_BPS", "PUBLISHED_R", "score"]

PUBLISHED_BPS = (1.119, 0.450, 0.551, 0.750, 1.081, 1.419)
PUBLISHED_R = (0.817, 0.604, 0.514, 0.673, 0.710, 0.755)
"""Of the LN model that Mahuas et al. released, cells 0 to 5."""
FRAME_BINS = 10  # bins of 1.67 ms that show the same frame; the PSTH is taken over them


def score(checkpoint: str | Path, data_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bits per spike in bins of 1.67 ms and correlation with the PSTH in bins of 16.7 ms, each (U,).

    Parameters
    ----------
    checkpoint
        Of a run on this session.
    data_dir
        Folder of the session; None: where training found it.
    """
    twin = load_twin(checkpoint)
    config = twin.sessions[0].config
    path = Path(config.path) if data_dir is None else Path(data_dir) / Path(config.path).name
    bits_per_spike = evaluate(twin, prepare([config.model_copy(update={"path": str(path)})]), "test")["bps"]

    session = Session.load(path)
    test = np.flatnonzero(session.split == "test")
    n_repeats = len(np.unique(session.trial[test]))
    psth = session.responses[test].reshape(n_repeats, -1, session.n_units).mean(axis=0)
    rates = twin.predict(session.stimulus[test[: len(psth)]], session=session.name, bin_rate=session.bin_rate)
    first = -(-twin.context // FRAME_BINS)  # frame; those before lack a past to predict from
    rates, psth = (x.reshape(-1, FRAME_BINS, session.n_units).sum(axis=1)[first:] for x in (rates, psth))
    return bits_per_spike, pearsonr(rates, psth, axis=0).statistic


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="such as checkpoints/retina_bars/checkpoints/best.ckpt")
    parser.add_argument("--data_dir", help="folder of the session, if it has moved since training")
    bps, r = score(**vars(parser.parse_args()))
    print("cell  bits per spike  published LN  r with PSTH  published LN")
    for cell, row in enumerate(zip(bps, PUBLISHED_BPS, r, PUBLISHED_R, strict=True)):
        print("{:4}  {:14.3f}  {:12.3f}  {:11.3f}  {:12.3f}".format(cell, *row))
    means = (np.mean(column) for column in (bps, PUBLISHED_BPS, r, PUBLISHED_R))
    print("mean  {:14.3f}  {:12.3f}  {:11.3f}  {:12.3f}".format(*means))
