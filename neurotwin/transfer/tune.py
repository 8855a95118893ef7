"""A short joint fine-tuning of a core and the readouts that were fitted to it."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from ..config import ConfigError
from ..data.clips import clip_table, stream
from ..data.prepare import Prepared
from ..models.network import CORE_PARTS, Streamer, evaluating
from ..models.parameters import describe_parameters
from ..models.twin import TwinModel

__all__ = ["TUNED", "check_tuned", "tune"]

logger = logging.getLogger(__name__)

TUNED: dict[str, tuple[str, ...]] = {
    "core": ("frontend", "convnet"),
    "modulator": ("modulator", "recurrent"),
    "all": CORE_PARTS,
}
"""What each choice of `--tune` changes, besides the readouts."""


def check_tuned(twin: TwinModel, part: str) -> None:
    """Refuse a part that does not exist, or that has no parameter in a twin.

    Raises
    ------
    ConfigError
        With the parts that could be tuned instead.
    """
    here = {info.part for info in describe_parameters(twin) if info.session is None}
    possible = [name for name, parts in TUNED.items() if here.intersection(parts)]
    if part not in possible:
        lacks = "no such part" if part not in TUNED else f"the model has no {' or '.join(TUNED[part])} to change"
        cure = f"use one of {', '.join(possible)}" if possible else "leave it out"
        raise ConfigError(f"--tune {part}: {lacks}; {cure}")


def tune(
    twin: TwinModel, sessions: Sequence[Prepared], part: str, *, seed: int = 0, learning_rate: float = 2e-4,
    rounds: int = 20, patience: int = 3, bins: int = 512,
) -> float:  # fmt: skip
    """Change a part of the core and all readouts by small steps, and keep what validation likes best.

    AdamW runs over the training clips. After each round the loss of the validation part is computed; `patience` rounds
    without a better one end the tuning. Norms keep the running statistics of their training and there is no dropout, so
    that the twin at the start is exactly the one that was fitted.

    Parameters
    ----------
    twin
        Its sessions are those given; it is changed in place.
    sessions
        Prepared, in the order of the twin's.
    part
        A key of :data:`TUNED`.
    seed
        Of the order of clips.
    learning_rate
        Of the readouts; that of the core is the same.
    rounds, patience
        At most so many rounds, and how many without improvement end it.
    bins
        Predicted bins of a step, about.

    Returns
    -------
    float
        The best validation loss, nats a response.
    """
    table = clip_table(sessions, "train", length=32)
    batch, rng = max(1, bins // table.length), np.random.default_rng(seed)
    chosen = [i for i in describe_parameters(twin) if i.session is not None or i.part in TUNED[part]]
    groups = [
        {"params": [i.parameter], "lr": learning_rate * i.lr_scale, "weight_decay": 0.01 * i.decays} for i in chosen
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    best, waited = _loss(twin, sessions), 0
    kept = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    with torch.enable_grad(), evaluating(twin):
        for number in range(rounds):
            order = rng.permutation(len(table))
            for first in range(0, len(order), batch):
                _step(twin, table.samples(order[first : first + batch], context=twin.context), optimizer)
            loss = _loss(twin, sessions)
            logger.info("tuning, round %d: validation loss %.5f (best %.5f)", number + 1, loss, min(best, loss))
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, kept = loss, {name: tensor.clone() for name, tensor in twin.state_dict().items()}
            if waited == patience:
                break
    twin.load_state_dict(kept)
    return best


def _step(twin: TwinModel, samples: Sequence, optimizer: torch.optim.Optimizer) -> None:
    samples = [sample.to(twin.like.device) for sample in samples]
    optimizer.zero_grad()
    total, count = 0.0, 0
    for sample, rates in zip(samples, twin([sample.clip for sample in samples]), strict=True):
        target = sample.target
        nll = twin.per_session[sample.session].likelihood.nll
        total = total + nll(rates, target.responses, target.mask, target.exposure)
        count += int(target.mask.sum())
    (total / max(count, 1)).backward()
    optimizer.step()


@torch.no_grad()
def _loss(twin: TwinModel, sessions: Sequence[Prepared]) -> float:
    """Mean validation loss, nats a response."""
    total, count = 0.0, 0
    with evaluating(twin):
        for index, prepared in enumerate(sessions):
            streamer = Streamer(twin)
            for sample in stream(prepared, "val", context=twin.context):
                sample = sample.of_session(index).to(twin.like.device)
                target, likelihood = sample.target, twin.per_session[index].likelihood
                rates = streamer(sample.clip)
                total += float(likelihood.nll(rates, target.responses, target.mask, target.exposure))
                count += int(target.mask.sum())
    return total / max(count, 1)
