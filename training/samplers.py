"""The order in which clips are trained on: a pure function of a seed and a step.

All clips form one endless stream. With G clips in the global batch, step s takes the positions [s G, (s + 1) G) of the
stream, and each process takes its part of them. The clips of a step are therefore the same for any number of processes,
and to resume, only the step has to be stored. A step here is a micro-batch: with gradient accumulation, several of them
make an optimizer step.

A training loader takes a sampler as it is (``DataLoader(clips, batch_sampler=sampler)``); the framework must not wrap
it in a distributed sampler of its own (``Trainer(use_distributed_sampler=False)``).
"""

import logging
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

__all__ = ["ClipSampler", "ContrastWeightedSampler", "shuffled"]

log = logging.getLogger(__name__)

# Independent random streams are told apart by the second number of their seed.
_GROUP_ORDER, _CLIP_ORDER, _EMPHASIS = range(3)
_LARGEST_ORDER = 1 << 14  # clips of a group whose order is written out


def shuffled(entries: np.ndarray, size: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Some entries of a random permutation of ``range(size)``, without the others.

    A Feistel network mixes the two halves of an index's bits and is a bijection of them whatever its rounds compute
    (Luby & Rackoff 1988). An index that leaves the range is mixed again until it lies within (cycle walking: Black &
    Rogaway 2002), which on average takes less than four turns.

    Parameters
    ----------
    entries
        (N,) places in the permutation, from 0 to `size` - 1.
    size
        Length of the permutation.
    seed
        Of the permutation.

    Returns
    -------
    numpy.ndarray
        (N,) int64.

    Examples
    --------
    >>> sorted(shuffled(np.arange(5), 5, seed=0).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    keys = np.random.default_rng(seed).integers(0, 2**64, _ROUNDS, np.uint64)
    values = np.asarray(entries).astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


_ROUNDS = 8


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits: the last steps of splitmix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class ClipSampler(Sampler[np.ndarray]):
    """Clips in random order, none twice before all have been seen.

    Position p of the stream belongs to block b = p // n_groups, in which each group occurs once, in an order drawn for
    that block. A group's b-th clip is entry b of its own stream of permutations: pass k through a group of n clips is
    a permutation drawn from (seed, group, k), and entry b is number b mod n of pass b // n. So every group is drawn
    equally often, exactly, and within a group no clip is left out. Without `groups` all clips are one group.

    A permutation of many clips is never written out: :func:`shuffled` computes the entries that a step needs.

    Parameters
    ----------
    n_clips
        Number of clips in the table that the indices point into.
    batch_size
        Clips per process and step.
    steps_per_epoch
        Steps (micro-batches) after which an iteration ends. An epoch is only a length: the stream runs on.
    seed
        Seed of the order, the same on every process.
    rank, world_size
        This process and the number of processes.
    groups
        The group (session or subject) of each clip, to draw every group equally often: (n_clips,), or with `sizes`
        (S,), one for each stretch of successive clips.
    sizes
        (S,) number of clips of each stretch.

    Attributes
    ----------
    step
        The next step to be handed out. A loader with workers fetches ahead of training, so a checkpoint stores the
        number of micro-batches trained, not this.

    Raises
    ------
    ValueError
        If there are no clips, a size is not positive, or `groups` does not fit.

    Examples
    --------
    >>> sampler = ClipSampler(6, batch_size=2, steps_per_epoch=3, seed=0)
    >>> sorted(int(clip) for indices in sampler for clip in indices)
    [0, 1, 2, 3, 4, 5]
    >>> sampler.step
    3
    """

    def __init__(
        self,
        n_clips: int,
        *,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
    ) -> None:
        if n_clips < 1:
            raise ValueError("there are no clips to train on; check the split, the filters and clip_len")
        if batch_size < 1 or steps_per_epoch < 1:
            raise ValueError(f"batch_size {batch_size} and steps_per_epoch {steps_per_epoch} must be positive")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self.n_clips, self.batch_size, self.steps_per_epoch = n_clips, batch_size, steps_per_epoch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.step = 0
        groups = np.zeros(1) if groups is None else np.asarray(groups)
        sizes = (np.ones(len(groups), np.int64) if len(groups) == n_clips else [n_clips]) if sizes is None else sizes
        sizes = np.asarray(sizes, np.int64)
        if groups.shape != sizes.shape or sizes.sum() != n_clips or (sizes < 0).any():
            raise ValueError(
                f"groups has shape {groups.shape}; one group for each of the {n_clips} clips, or for each of `sizes`"
            )
        codes = np.unique(groups, return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")  # stretches of group 0, then of group 1, ...
        self._starts = (np.cumsum(sizes) - sizes)[order]
        self._edges = np.concatenate([[0], np.cumsum(sizes[order])])  # clips before each of them
        totals = np.bincount(codes, weights=sizes).astype(np.int64)
        self._bounds = np.concatenate([[0], np.cumsum(totals[totals > 0])])  # group g: [bounds[g], bounds[g + 1])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        """This process's indices of each step, from `step` to the end of the epoch that it lies in."""
        for step in range(self.step, (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch):
            self.step = step + 1
            yield self.indices(step)

    def indices(self, step: int) -> np.ndarray:
        """(batch_size,) int64 clips of this process in a step."""
        return self.global_indices(step)[self.rank * self.batch_size :][: self.batch_size]

    def global_indices(self, step: int) -> np.ndarray:
        """(world_size * batch_size,) int64 clips of a step, the same on every process."""
        return self._stream(step)[1]

    def state_dict(self) -> dict[str, int]:
        """All that changes: the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a stored step."""
        self.step = int(state["step"])

    def _stream(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and clip at each position of a step of the uniform stream."""
        size, n_groups = self.world_size * self.batch_size, len(self._bounds) - 1
        positions = np.arange(step * size, (step + 1) * size)
        blocks = positions // n_groups
        groups = np.zeros(size, np.int64)
        if n_groups > 1:
            orders = [self._permutation(n_groups, _GROUP_ORDER, 0, b) for b in range(blocks[0], blocks[-1] + 1)]
            groups = np.stack(orders)[blocks - blocks[0], positions % n_groups]
        clips = np.empty(size, np.int64)
        for group in np.unique(groups):
            size = int(self._bounds[group + 1] - self._bounds[group])
            passes, entries = np.divmod(blocks, size)
            for number in np.unique(passes[groups == group]):
                here = (groups == group) & (passes == number)
                clips[here] = self._clips(
                    self._bounds[group] + self._entries(int(group), int(number), size, entries[here])
                )
        return groups, clips

    def _clips(self, places: np.ndarray) -> np.ndarray:
        """Clips at some places of the list of all clips that is sorted by group."""
        stretch = np.searchsorted(self._edges, places, side="right") - 1
        return self._starts[stretch] + places - self._edges[stretch]

    def _entries(self, group: int, number: int, size: int, entries: np.ndarray) -> np.ndarray:
        """Some entries of pass `number` through a group. An order that is written out is kept: it serves many steps."""
        if size > _LARGEST_ORDER:
            return shuffled(entries, size, (self.seed, _CLIP_ORDER, group, number))
        if self._orders.get(group, (None,))[0] != number:
            self._orders[group] = number, self._permutation(size, _CLIP_ORDER, group, number).astype(np.uint16)
        return self._orders[group][1][entries].astype(np.int64)

    def _permutation(self, length: int, stream: int, group: int, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, stream, group, int(number))).permutation(length)


class ContrastWeightedSampler(ClipSampler):
    """High-contrast clips more often at first, annealed within `warmup_steps` to the uniform stream.

    At step s, clip i of its group is drawn in proportion to ::

        (1 - a) + a c_i / mean(c),    a(s) = emphasis * max(0, 1 - s / warmup_steps)

    This is done as a mixture. Each position of the uniform stream keeps its clip with probability 1 - a. Otherwise it
    takes a clip of the same group, drawn in proportion to contrast. Groups therefore stay balanced, and clips without
    contrast are still drawn, 1 - a times as often. a falls at every step, and when it reaches 0, the stream is that of
    :class:`ClipSampler`.

    Parameters
    ----------
    scores
        (n_clips,) contrast of each *clip*, not of each frame; finite and not negative.
    warmup_steps
        Steps (micro-batches) until sampling is uniform.
    emphasis
        a at step 0, in [0, 1).

    Raises
    ------
    ValueError
        If there is not one finite, non-negative score for each clip, or no clip has contrast (then there is nothing
        to emphasise). A *group* without contrast is drawn uniformly, with a warning.

    Examples
    --------
    >>> sampler = ContrastWeightedSampler(
    ...     4, scores=np.array([0.0, 0.0, 0.0, 1.0]), warmup_steps=100, batch_size=1000, steps_per_epoch=10, seed=0
    ... )
    >>> [round(float((sampler.global_indices(step) == 3).mean()), 1) for step in (0, 50, 100)]
    [0.9, 0.6, 0.2]
    """

    def __init__(self, n_clips: int, *, scores: np.ndarray, warmup_steps: int, emphasis: float = 0.9, **kwargs) -> None:
        super().__init__(n_clips, **kwargs)
        scores = np.asarray(scores, np.float64)
        if scores.shape != (n_clips,):
            raise ValueError(f"scores has shape {scores.shape}; one score for each of the {n_clips} clips, not frames")
        if not np.isfinite(scores).all() or scores.min() < 0:
            raise ValueError(
                f"{int((~np.isfinite(scores)).sum())} contrast scores are not finite and {int((scores < 0).sum())} "
                "negative; a contrast is the standard deviation of the pixels of a clip, at least 0"
            )
        if not scores.any():
            raise ValueError("no clip has contrast: there is nothing to emphasise; train without the curriculum")
        if warmup_steps < 1 or not 0 <= emphasis < 1:
            raise ValueError(f"warmup_steps {warmup_steps} must be positive and emphasis {emphasis} in [0, 1)")
        self.warmup_steps, self.emphasis = warmup_steps, emphasis
        self._cumulative = np.concatenate([[0.0], np.cumsum(scores[self._clips(np.arange(n_clips))])])
        blank = np.flatnonzero(np.diff(self._cumulative[self._bounds]) == 0)
        if len(blank):
            log.warning("no clip of group %s has contrast: it is sampled uniformly", ", ".join(map(str, blank)))

    def emphasis_at(self, step: int) -> float:
        """a(step), the share of clips that are drawn by contrast."""
        return self.emphasis * max(0.0, 1 - step / self.warmup_steps)

    def global_indices(self, step: int) -> np.ndarray:
        """(world_size * batch_size,) int64 clips of a step, the same on every process."""
        groups, clips = self._stream(step)
        rng = np.random.default_rng((self.seed, _EMPHASIS, 0, step))
        low, high = self._cumulative[self._bounds[groups]], self._cumulative[self._bounds[groups + 1]]
        emphasised = (rng.random(len(clips)) < self.emphasis_at(step)) & (high > low)
        # Invert the group's cumulative contrast; rounding must not reach its upper end, which is the next group's.
        points = np.minimum(low + rng.random(len(clips)) * (high - low), np.nextafter(high, low))
        clips[emphasised] = self._clips(np.searchsorted(self._cumulative, points[emphasised], side="right") - 1)
        return clips
