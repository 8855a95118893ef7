"""The Lightning module and data module."""

from .multidataset_dm import ClipLoader, MultiDatasetDM, TrainingBatch
from .multidataset_model import MultiDatasetModel

__all__ = ["ClipLoader", "MultiDatasetDM", "MultiDatasetModel", "TrainingBatch"]
