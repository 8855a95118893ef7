"""The module of every component of the dialect, and how to add one of one's own."""

from typing import Any

from torch import nn

from ..config import PARAMS, Params, Part, nearest
from .convnet import ConvNet, DenseNet, ResNet
from .frontend import Adapter, ConvFrontend, DynamicalAdaptation, LearnableTemporal, TemporalBasis
from .modulator import Concat, ConvGRUModulator, FiLM
from .readout import (
    AttentionReadout,
    FactorizedReadout,
    GaussianEIReadout,
    GaussianReadout,
    LinearReadout,
    PointReadout,
    SpikeHistory,
)
from .recurrent import ConvGRU, ConvLSTM, PooledGRU, PooledLSTM
from .shifter import Shifter
from .stages import Identity, inside

__all__ = ["MODULES", "build", "register"]

MODULES: dict[str, dict[str, type[nn.Module]]] = {
    "adapter": {"none": Identity, "adapter": Adapter},
    "frontend": {
        "none": Identity, "learnable_temporal": LearnableTemporal, "temporal_basis": TemporalBasis,
        "da": DynamicalAdaptation, "conv": ConvFrontend, "adapter": Adapter,
    },
    "convnet": {
        "none": Identity, "vanilla": ConvNet, "conv": ConvNet, "cnn": ConvNet, "resnet": ResNet, "densenet": DenseNet,
    },
    "modulator": {"none": Identity, "concat": Concat, "film": FiLM, "convgru": ConvGRUModulator},
    "recurrent": {"none": Identity, "convgru": ConvGRU, "convlstm": ConvLSTM, "gru": PooledGRU, "lstm": PooledLSTM},
    "readout": {
        "gaussian": GaussianReadout, "gaussianei": GaussianEIReadout, "linear": LinearReadout,
        "factorized": FactorizedReadout, "point": PointReadout, "attention": AttentionReadout,
    },
    "shifter": {"none": Identity, "mlp": Shifter},
    "history_encoder": {"mlp": SpikeHistory},
}  # fmt: skip
"""The module of every component, by part and type; `neurotwin.config.PARAMS` holds their parameters."""


def register(part: str, name: str, module: type[nn.Module]) -> None:
    """Make a component of one's own available to configs as ``type: NAME``.

    Parameters
    ----------
    part
        adapter, frontend, convnet, modulator, recurrent, readout, shifter or history_encoder.
    name
        What configs call it.
    module
        Its class, with an attribute `Params` (a subclass of :class:`neurotwin.config.Params`). It is built as the
        components of that part in this package are: ``module(params, inputs, generator=...)`` and so on.

    Raises
    ------
    ValueError
        If there is no such part, the name is taken, or the class lacks `Params`.

    Examples
    --------
    >>> from neurotwin.config import ModelConfig
    >>> class Rectified(Identity):
    ...     def forward(self, x):
    ...         return x.relu()
    >>> register("frontend", "rectified", Rectified)
    >>> ModelConfig(frontend={"type": "rectified"}).frontend.type
    'rectified'
    """
    if part not in MODULES:
        raise ValueError(f"no part {part!r}; {nearest(part, list(MODULES))}")
    if MODULES[part].get(name, module) is not module:
        raise ValueError(f"{part} {name!r} exists already; choose another name")
    params = getattr(module, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise ValueError(f"{module.__name__} needs an attribute Params, a subclass of neurotwin.config.Params")
    PARAMS[part][name], MODULES[part][name] = params, module


def build(part: Part, *args: Any, **kwargs: Any) -> Any:
    """The module that a part of a config asks for; the other arguments are those of its class."""
    with inside(f"{part.part}.params"):
        return MODULES[part.part][part.type](part.params, *args, **kwargs)
