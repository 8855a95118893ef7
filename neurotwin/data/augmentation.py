"""Changes of a training stimulus that leave its responses as they are, or nearly: what a twin should not depend on.

An augmentation is one class. Its parameters, its definition and the name that a model file calls it by
(``training: augmentation: [{type: NAME, ...}]``) stand together. It is given one clip at a time, and random numbers
that follow from the seed, the step, the session and the clip alone: they are the same for any number of processes, and
in a run that was resumed. A clip keeps its dtype, and 8-bit stimuli stay within what a monitor can show.

Mirrored stimuli and mixtures of clips (CutMix) are left out on purpose. A unit's receptive field is not mirrored with
the stimulus. A unit responds to the part of a mixture that its receptive field lies on, not to the mixture of areas.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..clip import Sample
from ..config import Params, PositiveInt, register

__all__ = ["Augmentation", "Contrast", "Luminance", "Shift", "augment"]


class Augmentation(Params):
    """Base of the augmentations: derive, write :meth:`apply`, register under ``augmentation``."""

    def apply(self, movie: Tensor, generator: np.random.Generator) -> Tensor:
        """A clip's frames, changed.

        Parameters
        ----------
        movie
            (C, T, H, W), as recorded: grey levels from 0 to 255 for 8-bit stimuli, in float32 here.
        generator
            Random numbers of this clip in this step.
        """
        raise NotImplementedError


@register("augmentation", "contrast")
class Contrast(Augmentation):
    """m + c (x - m) with m the mean of the clip and c uniform in [1 - amount, 1 + amount], one draw a clip."""

    amount: float = Field(0.2, gt=0, le=1, description="Largest relative change of contrast.")

    def apply(self, movie: Tensor, generator: np.random.Generator) -> Tensor:
        """m + c (x - m)."""
        mean = movie.mean()
        return mean + generator.uniform(1 - self.amount, 1 + self.amount) * (movie - mean)


@register("augmentation", "luminance")
class Luminance(Augmentation):
    """x + d with d uniform in [-amount, amount], one draw a clip."""

    amount: float = Field(10.0, gt=0, description="Largest change, in the stimulus's own unit: of 255 grey levels.")

    def apply(self, movie: Tensor, generator: np.random.Generator) -> Tensor:
        """x + d."""
        return movie + generator.uniform(-self.amount, self.amount)


@register("augmentation", "shift")
class Shift(Augmentation):
    """The whole clip moved by as many pixels in all of its frames: what moves within it moves as before.

    The shift is uniform over the whole numbers from -pixels to pixels, for rows and columns by themselves. What comes
    in at an edge repeats the edge. It is for stimuli whose position on the receptive fields is known to so many pixels.
    """

    pixels: PositiveInt = Field(1, description="Largest shift along each axis.")

    def apply(self, movie: Tensor, generator: np.random.Generator) -> Tensor:
        """Down and to the right, where positive."""
        for axis, by in zip((2, 3), generator.integers(-self.pixels, self.pixels + 1, 2).tolist(), strict=True):
            source = (torch.arange(movie.shape[axis], device=movie.device) - by).clamp(0, movie.shape[axis] - 1)
            movie = movie.index_select(axis, source)
        return movie


def augment(sample: Sample, augmentations: Sequence[Augmentation], *, seed: int, step: int) -> Sample:
    """A sample with each of its clips augmented, one augmentation after the other.

    Parameters
    ----------
    sample
        Of one session, with its stimulus and `bins`; one without a stimulus is returned as it is.
    augmentations
        In their order.
    seed, step
        Of the run, and the number of the micro-batch.

    Examples
    --------
    >>> from neurotwin.clip import Clip, Target
    >>> movie = torch.arange(12, dtype=torch.uint8).view(1, 1, 1, 3, 4)
    >>> target = Target(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    >>> sample = Sample(Clip(0, 1, movie, bins=torch.tensor([7])), target)
    >>> shifted = augment(sample, [Shift(pixels=1)], seed=0, step=3)
    >>> shifted.clip.stimulus.shape, shifted.clip.stimulus.dtype
    (torch.Size([1, 1, 1, 3, 4]), torch.uint8)
    """
    stimulus = sample.clip.stimulus
    if stimulus is None or sample.clip.bins is None:
        return sample
    changed = []
    for movie, first in zip(stimulus, sample.clip.bins.tolist(), strict=True):
        generator = np.random.default_rng((seed, _STREAM, step, sample.session, first))
        values = movie.float()
        for augmentation in augmentations:
            values = augmentation.apply(values, generator)
        if not stimulus.is_floating_point():
            limits = torch.iinfo(stimulus.dtype)
            values = values.round().clamp(limits.min, limits.max)
        changed.append(values.to(stimulus.dtype))
    return replace(sample, clip=replace(sample.clip, stimulus=torch.stack(changed)))


_STREAM = 4  # tells these random numbers apart from those of the sampler
