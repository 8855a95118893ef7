"""Training of twins with Lightning: the model and the data module, and the parts they are made of.

>>> from training import MultiDatasetDM, MultiDatasetModel
>>> from training.samplers import ContrastWeightedSampler
"""

from .pl_modules import MultiDatasetDM, MultiDatasetModel

__all__ = ["MultiDatasetDM", "MultiDatasetModel"]
