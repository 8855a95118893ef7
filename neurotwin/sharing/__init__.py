"""Twins that are passed on: with a card, with checksums, and with predictions by which they are checked years later."""

from .bundle import SharingError, read_bundle, write_bundle
from .card import model_card
from .golden import Verdict, golden_predictions, verify
from .store import pull, push

__all__ = [
    "SharingError", "Verdict", "golden_predictions", "model_card", "pull", "push", "read_bundle", "verify",
    "write_bundle",
]  # fmt: skip
