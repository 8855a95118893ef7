"""What each parameter of a model is: its kind, the session it belongs to, and the name that config files know it by.

Each module says what its parameters are in its attribute `kinds`. Optimizer groups, weight decay, penalties, freezing
and figures read this attribute. They never guess from the name of a parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["KINDS", "SESSION_PARTS", "Kind", "ParameterInfo", "describe_parameters"]


@dataclass(frozen=True)
class Kind:
    """A kind of parameter.

    Attributes
    ----------
    meaning
        What such a parameter is.
    decays
        Whether weight decay makes sense: for weights, which are small or large, and not for positions, scales and
        constants, whose 0 means nothing.
    """

    meaning: str
    decays: bool = False


KINDS: dict[str, Kind] = {
    "kernel": Kind("convolution (O, I, T, H, W) or (O, I, H, W)", decays=True),
    "coefficients": Kind("weights of the functions that turned filters are made of (O, I, T, N, 1)", decays=True),
    "weight": Kind("linear map (O, I)", decays=True),
    "features": Kind("readout weights of features, units first: (U, C), (U, parts, C) or (parts, U, C)", decays=True),
    "feature_maps": Kind("readout weights of features and pixels (U, C, H, W)", decays=True),
    "mask": Kind("readout weights of pixels (U, H, W)", decays=True),
    "embedding": Kind("learned vectors that stand for something", decays=True),
    "bias": Kind("constant that is added"),
    "scale": Kind("gain of a norm or of a normalised kernel"),
    "position": Kind("where a readout looks, or how frames are sampled"),
    "state": Kind("state before the first frame"),
    "constant": Kind("constant of an equation, such as a time constant"),
    "sharpness": Kind("bend of a nonlinearity"),
    "dispersion": Kind("how much counts scatter beyond Poisson"),
    "variance": Kind("variance of responses"),
    "shape": Kind("shape of the density of responses"),
    "event size": Kind("what one event adds to a response"),
}
"""The kinds of parameters."""

SESSION_PARTS: dict[str, str] = {
    "adapter": "adapters",
    "readout": "readouts",
    "shifter": "shifters",
    "history_encoder": "history_encoders",
    "baseline": "baselines",
    "link": "links",
    "likelihood": "likelihoods",
}
"""Parts of a session's module, and what the config files' patterns call the parts of all sessions."""

_OF_TORCH: dict[type[nn.Module], dict[str, str]] = {
    nn.Linear: {"weight": "weight", "bias": "bias"},
    nn.LayerNorm: {"weight": "scale", "bias": "bias"},
    nn.PReLU: {"weight": "constant"},
}


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model.

    Attributes
    ----------
    name
        As the patterns of config files have it: ``readouts.3.features``, ``convnet.blocks.0.conv.weight``.
    parameter
        The parameter.
    kind
        One of :data:`KINDS`.
    session
        Index of the session that it belongs to; None for the shared core.
    part
        Part of the core (`frontend`) or of a session (`readout`).
    lr_scale
        How much faster than others it learns: where a module says so, in its attribute `lr_scales`.
    """

    name: str
    parameter: nn.Parameter
    kind: str
    session: int | None
    part: str
    lr_scale: float = 1.0

    @property
    def decays(self) -> bool:
        """Whether weight decay makes sense for it."""
        return KINDS[self.kind].decays


def describe_parameters(model: nn.Module) -> Iterator[ParameterInfo]:
    """Every parameter of a model, or of another module whose parts say what theirs are; in order, shared ones once.

    Raises
    ------
    TypeError
        If a module does not say what one of its parameters is.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                name = f"{path}.{own}".strip(".")
                scale = getattr(module, "lr_scales", {}).get(own, 1.0)
                yield ParameterInfo(dialect_name(name), parameter, _kind(module, own), *_place(name), scale)


def dialect_name(name: str) -> str:
    """The name that config files know a parameter by, from its name in the model.

    Examples
    --------
    >>> dialect_name("per_session.3.readout.features"), dialect_name("convnet.blocks.0.conv.weight")
    ('readouts.3.features', 'convnet.blocks.0.conv.weight')
    """
    head, *rest = name.split(".")
    if head != "per_session":
        return name
    session, part, *inner = rest
    return ".".join([SESSION_PARTS[part], session, *inner])


def _place(name: str) -> tuple[int | None, str]:
    head, *rest = name.split(".")
    return (int(rest[0]), rest[1]) if head == "per_session" else (None, head)


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, nn.RNNBase):
        return "bias" if name.startswith("bias") else "weight"
    kinds = getattr(module, "kinds", None) or _OF_TORCH.get(type(module), {})
    if kinds.get(name) not in KINDS:
        raise TypeError(
            f"{type(module).__name__} does not say what its parameter {name!r} is; add it to the class attribute "
            f"kinds, as one of {', '.join(KINDS)}"
        )
    return kinds[name]
