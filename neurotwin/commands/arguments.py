"""Arguments that several commands share."""

import argparse
from collections.abc import Callable

import torch

__all__ = ["add_device", "add_moved_data", "number"]


def number(kind: type, least: float, most: float) -> Callable[[str], float]:
    """A `type` for arguments: a number within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]}: must be from {least:g} to {most:g}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def add_device(parser: argparse.ArgumentParser, note: str = "") -> None:
    """The argument `--device`: by default the GPU if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=_device, default=default, help=f"{note}(%(default)s)")


def _device(text: str) -> str:
    """A `type` for arguments: what this machine can compute on."""
    kind, _, index = text.partition(":")
    devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in devices or (index and not index.isdecimal()) or int(index or 0) >= devices[kind]:
        there = [name for name, found in devices.items() if found]
        raise argparse.ArgumentTypeError(f"{text[:20]}: this machine has {', '.join(there)}")
    return text


def add_moved_data(parser: argparse.ArgumentParser, note: str = "") -> None:
    """The argument `--data_dir` of commands that read the recordings of a trained model."""
    parser.add_argument("--data_dir", help=f"{note}folder of session data, if it has moved since training")
