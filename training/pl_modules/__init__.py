"""The Lightning module and data module."""

from .multidataset_dm import ClipLoader, MultiDatasetDM, TrainingBatch
from .multidataset_model import MultiDatasetModel, NonFiniteLossError

__all__ = ["ClipLoader", "MultiDatasetDM", "MultiDatasetModel", "NonFiniteLossError", "TrainingBatch"]
