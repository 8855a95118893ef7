"""New recordings on the core of a trained twin: its features are computed once, then readouts are fitted to them."""

from .fit import FitOptions
from .transfer import Transferred, open_new, transfer

__all__ = ["FitOptions", "Transferred", "open_new", "transfer"]
