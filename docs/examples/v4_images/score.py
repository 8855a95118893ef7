"""Score a trained model on the V4 test images: Pearson r of prediction and mean over repeats, median over units.

    python docs/examples/v4_images/score.py CHECKPOINT

A test image took no part in fitting, in choosing the model or in stopping: score once, at the end.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr

from neurotwin import Session, load_twin
from neurotwin.cli import USER_ERRORS

__all__ = ["PUBLISHED", "main", "score"]

PUBLISHED = {"WE_190923": (0.497, 0.640), "PE_201025": (0.597, 0.708)}
"""Median r of Cowley et al.: network fitted directly to V4 responses; their best, distilled from an ensemble."""


def score(checkpoint: str | Path, data_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """Correlation of every unit, (U,), for each session that has test images.

    Parameters
    ----------
    checkpoint
        Of a run on these sessions.
    data_dir
        Folder of the sessions; None: where training found them.
    """
    twin = load_twin(checkpoint)
    correlations = {}
    for spec in twin.sessions:
        if spec.name in PUBLISHED:
            path = Path(spec.config.path)
            session = Session.load(path if data_dir is None else Path(data_dir) / path.name)
            test = session.valid & (session.split == "test")
            rates = twin.predict(session.stimulus[test], session=spec.name, bin_rate=session.bin_rate)
            mean_response = session.responses[test] / session.exposure[test, None]
            correlations[spec.name] = pearsonr(rates, mean_response, axis=0).statistic
    return correlations


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores; 2 with one line where there is nothing to score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="such as checkpoints/v4_images/checkpoints/best.ckpt")
    parser.add_argument("--data_dir", help="folder of the sessions, if they have moved since training")
    arguments = parser.parse_args(argv)
    try:
        scores = score(arguments.checkpoint, arguments.data_dir)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not scores:
        print(
            f"error: {arguments.checkpoint}: was trained on neither of the sessions with test images, "
            f"{' and '.join(PUBLISHED)}",
            file=sys.stderr,
        )
        return 2
    for name, r in scores.items():
        low, median, high = np.quantile(r, [0.25, 0.5, 0.75])
        direct, best = PUBLISHED[name]
        print(f"{name}: median r {median:.3f} over {len(r)} units (quartiles {low:.3f}, {high:.3f}); ", end="")
        print(f"published: direct fit {direct:.3f}, best {best:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
