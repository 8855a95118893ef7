"""Which bins are for training, validation and test."""

import zlib

import numpy as np

from ..config import DatasetConfig
from .session import SPLITS, SessionError

__all__ = ["split_bins"]


def split_bins(
    config: DatasetConfig, *, name: str, trial: np.ndarray, usable: np.ndarray, labels: np.ndarray | None = None,
    trains: bool = True,
) -> np.ndarray:  # fmt: skip
    """Split of every bin: index into ``("train", "val", "test")``, or -1 for none, (T,) int8.

    Bins that the session labels keep their label. The other bins are split by whole trials, so that bins of equal trial
    id stay together; trials without a usable bin are not drawn. The permutation of trials depends on the seed and on
    the session's name, so that each session has another one, and on nothing else.

    Parameters
    ----------
    config
        The session's configuration.
    name
        Name of the session.
    trial
        (T,) int.
    usable
        (T,) bool: bins with a valid count.
    labels
        (T,) names of the split, empty for bins to draw; or None.
    trains
        Whether the session is to be trained on; else its parts may be empty.

    Raises
    ------
    SessionError
        If training would have no usable bin, or validation none although trials are drawn for it.
    """
    codes = np.full(len(trial), -1, np.int8)
    drawn = np.ones(len(trial), bool) if labels is None else labels == ""
    order = np.random.default_rng([config.seed, zlib.crc32(name.encode())]).permutation(
        np.unique(trial[usable & drawn])
    )
    n_train = round(config.train_val_split * len(order))
    n_test = round(config.test_split * len(order))
    for code, part in enumerate(np.split(order, [n_train, max(n_train, len(order) - n_test)])):
        codes[drawn & np.isin(trial, part)] = code
    if labels is not None:
        for code, label in enumerate(SPLITS):
            codes[labels == label] = code
    # A session that labels all of its bins has said itself what it validates on, be it nothing.
    validates = trains and drawn.any() and config.train_val_split < 1
    for code, label in enumerate(SPLITS[:2] if validates else SPLITS[: int(trains)]):
        if not (usable & (codes == code)).any():
            n_trials = len(np.unique(trial[usable]))
            raise SessionError(
                f"session {name!r}: the {label} split is empty ({n_trials} trials with valid bins, train_val_split "
                f"{config.train_val_split}); mark more trials, change train_val_split, or label bins with "
                "Session(split=...)"
            )
    return codes
