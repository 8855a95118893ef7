"""The configuration dialect as typed models: every key, what it means, what it may be.

This is the single place where the dialect is defined. A model or dataset YAML is read by :func:`load_model_config` or
:func:`load_dataset_configs`; an unknown key or an impossible value is a :class:`ConfigError` that names the file, the
line, the key and the nearest valid one. Code inside trusts what it is given and checks nothing twice.

A component (a readout, a frontend, ...) is configured by ``{type: NAME, params: {...}}``. Each type has one
:class:`Params` class, found through :data:`PARAMS`; `neurotwin.models` pairs it with the module that it configures.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from torch.nn.modules import activation

__all__ = [
    "FILTERS",
    "PARAMS",
    "TRANSFORMS",
    "BlockConfig",
    "ConfigError",
    "DatasetConfig",
    "ModelConfig",
    "Params",
    "Part",
    "RegularizerConfig",
    "json_schemas",
    "load_dataset_configs",
    "load_model_config",
    "nearest",
]


class ConfigError(ValueError):
    """A configuration file cannot mean what it says; the message names file, line, key and cure."""


def nearest(word: str, words: Sequence[str]) -> str:
    """A suggestion for a misspelt word: ``did you mean 'threshold'?``, or the list of valid words."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(map(str, words))}"


class Strict(BaseModel):
    """A mapping whose unknown keys are refused with the nearest valid key."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data:
            if key not in known and key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": nearest(key, known)}
                )
        return data


class Params(Strict):
    """Base of the parameters of a component."""


def _triple(value: Any) -> Any:
    return (value,) * 3 if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[tuple[int, int, int], BeforeValidator(_triple, json_schema_input_type=int | tuple[int, int, int])]
"""``[T, H, W]``; a single number means the same on all three axes."""
PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


# --------------------------------------------------------------------------------------------------------------------
# Convolution blocks
# --------------------------------------------------------------------------------------------------------------------


class WindowParams(Params):
    """Parameters of the anti-alias window."""

    power: float = Field(1.0, gt=0, description="The window is raised to this power; below 1 it tapers less.")


class KernelParams(Params):
    """What may be done to the kernel of a convolution before it is used."""

    aa_signal: bool = Field(False, description="Taper the kernel with a separable window, on axes of 5 or more.")
    aa_window: Literal["hann", "hamming", "blackman", "kaiser"] = Field(
        "hann", description="Shape of the window; its peak is 1."
    )
    aa_window_kwargs: WindowParams = Field(default_factory=WindowParams, description="Parameters of the window.")
    use_weight_norm: bool = Field(False, description="Normalise each filter, with a learned norm.")
    keep_unit_norm: bool = Field(False, description="Normalise each filter, whose norm stays 1.")
    weight_norm_dim: int = Field(0, description="Axis of the weight that is not normalised over (0: each filter).")


class ConvParams(KernelParams):
    """A convolution over time and space."""

    type: Literal["standard", "depthwise"] = Field(
        "standard", description="standard, or depthwise followed by a pointwise convolution."
    )
    kernel_size: Size = Field((3, 3, 3), description="[T, H, W] in bins and pixels.")
    stride: Size = Field((1, 1, 1), description="[T, H, W]. A stride over time is realised as dilation further on.")
    padding: Size = Field((0, 0, 0), description="[T, H, W]. In causal blocks time is padded as needed instead.")
    dilation: Size = Field((1, 1, 1), description="[T, H, W].")
    groups: PositiveInt = Field(1, description="Groups of channels that do not mix.")
    bias: bool | None = Field(None, description="Default: true only without a norm.")
    padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = Field("zeros", description="Spatial padding.")

    @model_validator(mode="after")
    def _check(self) -> "ConvParams":
        for key in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, key)) < 1:
                raise ValueError(f"{key} must be at least 1 on every axis")
        if min(self.padding) < 0:
            raise ValueError("padding must not be negative")
        return self


class NormParams(Params):
    """Parameters of a norm."""

    affine: bool = Field(True, description="Learn a scale (and shift, where the norm has one) per channel.")
    num_groups: PositiveInt = Field(8, description="group: number of groups of channels.")
    eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    momentum: float = Field(0.1, gt=0, le=1, description="batch: weight of a new batch in the running statistics.")


class PoolParams(Params):
    """Pooling at the end of a block. The type decides which keys are read."""

    type: Literal[
        "none", "max", "avg", "adaptivemax", "adaptiveavg", "aablur", "se_pool", "locatt", "learned"
    ] = Field("none", description="Kind of pooling.")  # fmt: skip
    kernel_size: Size | None = Field(None, description="max, avg, learned: window. Default: the stride.")
    stride: Size | None = Field(None, description="max, avg, aablur, se_pool, learned. Default: 2 in space, 1 in time.")
    padding: Size = Field((0, 0, 0), description="max, avg, learned.")
    output_size: Size | None = Field(None, description="adaptivemax, adaptiveavg: [T, H, W]; time must be 1 or absent.")
    r: PositiveInt = Field(4, description="se_pool: reduction of the squeeze.")
    use_soft: bool = Field(True, description="se_pool: weight pixels by their exponential (soft pool); else average.")
    use_blur: bool = Field(True, description="se_pool: blur before sampling.")
    chan_window: PositiveInt = Field(3, description="locatt: channels that compete with one another.")
    spatial_kernel: PositiveInt = Field(3, description="locatt: neighbourhood in pixels, odd.")

    _KEYS: ClassVar[dict[str, set[str]]] = {
        "none": set(),
        "max": {"kernel_size", "stride", "padding"},
        "avg": {"kernel_size", "stride", "padding"},
        "adaptivemax": {"output_size", "kernel_size"},
        "adaptiveavg": {"output_size", "kernel_size"},
        "aablur": {"stride"},
        "se_pool": {"stride", "r", "use_soft", "use_blur"},
        "locatt": {"chan_window", "spatial_kernel"},
        "learned": {"kernel_size", "stride", "padding"},
    }

    @model_validator(mode="after")
    def _only_keys_of_the_type(self) -> "PoolParams":
        keys = {"type"} | self._KEYS[self.type]
        fields = type(self).model_fields
        idle = [key for key in fields if key not in keys and getattr(self, key) != fields[key].default]
        if idle:
            raise ValueError(f"pool type {self.type!r} does not read {idle}; it reads {sorted(self._KEYS[self.type])}")
        if self.spatial_kernel % 2 == 0:
            raise ValueError("spatial_kernel must be odd, or the map shifts")
        return self


class ActParams(Params):
    """Parameters of an activation."""

    negative_slope: float | None = Field(None, description="leakyrelu: slope below 0 (default 0.01).")
    beta: float | None = Field(None, description="softplus, bsoftplus: sharpness (its initial value, where learned).")
    split_dim: int | None = Field(None, description="splitrelu: axis that doubles; the channels by default.")


STEPS = ("pad", "conv", "norm", "act", "dropout", "pool")
NormType = Literal["none", "batch", "instance", "layer", "rms", "group", "grn"]


class BlockConfig(Params):
    """One block: pad, convolve, normalise, activate, drop out, pool."""

    conv_params: ConvParams = Field(default_factory=ConvParams, description="The convolution.")
    norm_type: NormType = Field(
        "none", description="Statistics are per frame (or running, for batch), never over the time axis of a clip."
    )
    norm_params: NormParams = Field(default_factory=NormParams, description="Parameters of the norm.")
    act_type: str = Field(
        "relu",
        description="none = identity, relu, leakyrelu, gelu, sigmoid, tanh, silu = swish, mish, softplus, bsoftplus, "
        "splitrelu, square, or a class of torch.nn.",
    )
    act_params: ActParams = Field(default_factory=ActParams, description="Parameters of the activation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a channel is dropped in training.")
    pool_params: PoolParams = Field(default_factory=PoolParams, description="Pooling.")
    causal: bool = Field(
        True,
        description="True: time is padded on the left, replicating. False: no padding in time. Frames are the same.",
    )
    order: tuple[Literal["pad", "conv", "norm", "act", "dropout", "pool"], ...] = Field(
        STEPS,
        description="Order of the steps; each at most once; one left out is not done. pad is the padding over time, "
        "which the frames before a clip stand in for; spatial padding belongs to the convolution.",
    )

    @field_validator("act_type")
    @classmethod
    def _known_activation(cls, value: str) -> str:
        return check_activation(value)

    @field_validator("order")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or "conv" not in value:
            raise ValueError("order names each step at most once, and conv")
        if "pad" in value and value.index("pad") > value.index("conv"):
            raise ValueError("pad must come before conv")
        return value

    @model_validator(mode="after")
    def _no_made_up_future(self) -> "BlockConfig":
        for key in ("conv_params", "pool_params"):
            time, height, width = getattr(self, key).padding
            if time and not self.causal:
                raise ValueError(
                    f"{key}.padding over time would end every prediction on made-up frames; "
                    f"write [0, {height}, {width}], or causal: true"
                )
        return self


ACTIVATIONS = (
    "none", "identity", "relu", "leakyrelu", "gelu", "sigmoid", "tanh", "silu", "swish", "mish", "softplus",
    "bsoftplus", "splitrelu", "square",
)  # fmt: skip


def check_activation(name: str) -> str:
    """Return the name if it is an activation of the dialect or of torch.nn; raise ValueError if not."""
    classes = [key for key in activation.__all__ if key != "MultiheadAttention"]
    if name not in ACTIVATIONS and name not in classes:
        raise ValueError(f"unknown activation {name!r}; {nearest(name, [*ACTIVATIONS, *classes])}")
    return name


# --------------------------------------------------------------------------------------------------------------------
# Components
# --------------------------------------------------------------------------------------------------------------------


class NoParams(Params):
    """A component without parameters."""


class AdapterParams(Params):
    """Learned anti-alias blur and resampling of a session's frames onto the grid that the core sees."""

    grid_size: PositiveInt = Field(51, description="Height and width of the output, pixels.")
    init_sigma: float = Field(1.0, gt=0, description="Blur at the start, input pixels (at least what the grid needs).")
    transform: Literal["scale", "affine"] = Field("scale", description="What is learned of the sampling grid.")


class LearnableTemporalParams(KernelParams):
    """Temporal filters shared over pixels; no padding in time."""

    kernel_size: PositiveInt = Field(16, description="Number of taps.")
    num_channels: PositiveInt = Field(4, description="Number of filters (for each input channel).")
    init_type: Literal["gaussian_derivatives", "biphasic", "identity", "random"] = Field(
        "gaussian_derivatives", description="Filters at the start."
    )
    causal: bool = Field(True, description="Must be true: a filter sees the past only.")
    bias: bool = Field(False, description="Add a constant per filter.")
    split_MP: bool = Field(False, description="First split each frame into its low-pass and the residual.")
    stride: PositiveInt = Field(1, description="Over time; realised as dilation further on.")
    dilation: PositiveInt = Field(1, description="Bins between the taps of a filter.")
    padding: Literal[0] = Field(0, description="Must be 0: the convolution is valid.")

    @field_validator("causal")
    @classmethod
    def _causal(cls, value: bool) -> bool:
        if not value:
            raise ValueError("only causal: true is possible, a filter cannot see the future")
        return value


class TemporalBasisParams(Params):
    """Raised cosines on a logarithmic time axis (Pillow et al. 2008), as causal filters."""

    num_delta_funcs: int = Field(0, ge=0, description="Single-bin functions at the newest bins.")
    num_cosine_funcs: PositiveInt = Field(10, description="Raised cosines after them.")
    history_bins: PositiveInt = Field(32, description="Length of the filters, bins.")
    log_spacing: bool = Field(True, description="Peaks equally spaced in log time; else in time.")
    peak_range_ms: tuple[float, float] = Field((10.0, 100.0), description="First and last peak, ms before now.")
    bin_size_ms: float = Field(8.0, gt=0, description="Width of a bin, ms.")
    normalize: bool = Field(True, description="Each function has norm 1.")
    orthogonalize: bool = Field(False, description="Make the functions orthonormal (QR).")
    causal: bool = Field(True, description="Must be true.")
    batch_norm: bool = Field(False, description="Normalise each output by running statistics.")
    chomp: int = Field(0, ge=0, description="Newest bins that the functions leave out.")

    @model_validator(mode="after")
    def _check(self) -> "TemporalBasisParams":
        if not self.causal:
            raise ValueError("only causal: true is possible, a filter cannot see the future")
        if self.peak_range_ms[0] < 0 or self.peak_range_ms[0] > self.peak_range_ms[1]:
            raise ValueError("peak_range_ms must be two increasing times, not negative")
        if self.num_delta_funcs + self.chomp >= self.history_bins:
            raise ValueError("history_bins must exceed num_delta_funcs + chomp")
        return self


class DynamicalAdaptationParams(Params):
    """Dynamical adaptation of photoreceptors, r = alpha y / (1 + beta z) (Clark et al. 2013, tau_r to 0)."""

    alpha: float = Field(1.0, description="Gain.")
    beta: float = Field(1.0, ge=0, description="Strength of the divisive adaptation.")
    gamma: float = Field(0.5, ge=0, le=1, description="Share of the fast filter in the slow one.")
    tau_y_ms: float = Field(5.0, gt=0, description="Time constant of the fast filter, ms.")
    tau_z_ms: float = Field(60.0, gt=0, description="Time constant of the slow filter, ms.")
    n_y: float = Field(5.0, ge=0, description="Order of the fast filter.")
    n_z: float = Field(2.0, ge=0, description="Order of the slow filter.")
    filter_length: PositiveInt = Field(32, description="Length of the filters, bins.")
    learnable_params: bool | tuple[str, ...] = Field(False, description="Learn all of the parameters, or those named.")
    height: PositiveInt | None = Field(None, description="Checked against the stimulus.")
    width: PositiveInt | None = Field(None, description="Checked against the stimulus.")

    @field_validator("learnable_params")
    @classmethod
    def _known(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        names = ("alpha", "beta", "gamma", "tau_y_ms", "tau_z_ms", "n_y", "n_z")
        for name in value if isinstance(value, tuple) else ():
            if name not in names:
                raise ValueError(f"{name!r} is not a parameter of da; {nearest(name, names)}")
        return value


class ConvFrontendParams(BlockConfig):
    """One convolution block in front of the convnet."""

    out_channels: PositiveInt = Field(8, description="Channels of the output.")


class StemConfig(BlockConfig):
    """A block before the first stage."""

    out_channels: PositiveInt = Field(..., description="Channels of the output.")


class ConvNetParams(Params):
    """A stack of blocks."""

    channels: tuple[PositiveInt, ...] = Field((32, 64), min_length=1, description="Output channels of each block.")
    stem_config: StemConfig | None = Field(None, description="A block before the first.")
    block_configs: tuple[BlockConfig, ...] | None = Field(None, description="One a channel. Default: 3x3x3, relu.")
    final_activation: str = Field("none", description="Activation after the last block.")
    checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")

    @field_validator("final_activation")
    @classmethod
    def _known_activation(cls, value: str) -> str:
        return check_activation(value)

    @model_validator(mode="after")
    def _one_block_a_channel(self) -> "ConvNetParams":
        if self.block_configs is not None and len(self.block_configs) != len(self.channels):
            raise ValueError(
                f"{len(self.block_configs)} block_configs for {len(self.channels)} channels; give one each"
            )
        return self

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The block of each stage."""
        return self.block_configs or (BlockConfig(),) * len(self.channels)


class ResNetParams(ConvNetParams):
    """Blocks with a shortcut around each."""

    resnet_post_add_activation: str | None = Field(None, description="Activation after shortcut and block are added.")

    @field_validator("resnet_post_add_activation")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return value if value is None else check_activation(value)


class DenseNetParams(ConvNetParams):
    """Blocks that each append `channels` maps (the growth) to all that came before."""


class EncoderParams(Params):
    """A multi-layer perceptron over the behaviour of a bin."""

    dims: tuple[PositiveInt, ...] = Field((64, 64), description="Width of each layer.")
    activation: str = Field("gelu", description="Activation between layers.")
    residual: bool = Field(True, description="Add the input of a layer to its output where the widths agree.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a feature is dropped in training.")
    use_layer_norm: bool = Field(False, description="Normalise each layer's output.")

    @field_validator("activation")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_activation(value)


class ModulatorParams(Params):
    """What all modulators share."""

    behavior_dim: PositiveInt | None = Field(None, description="Checked against the data where given.")
    feature_dim: PositiveInt | None = Field(None, description="Checked against the convnet's channels where given.")


class ConcatParams(ModulatorParams):
    """Encode the behaviour and append it as channels, the same at every pixel."""

    encoder_params: EncoderParams = Field(default_factory=EncoderParams, description="The encoder.")


class FiLMParams(ModulatorParams):
    """Scale and shift every channel by the behaviour; the identity at the start."""

    encoder_params: EncoderParams = Field(default_factory=EncoderParams, description="The encoder.")


class ConvGRUModulatorParams(ModulatorParams):
    """A convolutional GRU over the features, driven by them and the behaviour."""

    hidden_dim: PositiveInt = Field(64, description="Channels of the state.")
    beh_emb_dim: PositiveInt = Field(16, description="Features of the behaviour.")
    kernel_size: PositiveInt = Field(3, description="Spatial kernel, odd.")
    use_layer_norm: bool = Field(True, description="Normalise the gates over channels.")
    learnable_h0: bool = Field(True, description="Learn the state before the first frame (else 0).")
    use_residual: bool = Field(True, description="Add the features to the output (projected where widths differ).")
    grad_clip_val: float | None = Field(None, gt=0, description="Clip the gradient that flows back through each step.")
    encoder_params: EncoderParams = Field(
        default_factory=lambda: EncoderParams(dims=(64,)), description="Hidden layers of the behaviour's embedding."
    )

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("kernel_size must be odd, or the map shifts")
        return value


class ConvRecurrentParams(Params):
    """A convolutional recurrent network over the feature maps."""

    hidden_dim: PositiveInt = Field(64, description="Channels of the state.")
    kernel_size: PositiveInt = Field(3, description="Spatial kernel, odd.")
    n_layers: PositiveInt = Field(1, description="Layers.")

    _odd = field_validator("kernel_size")(ConvGRUModulatorParams._odd.__func__)  # type: ignore[attr-defined]


class RecurrentParams(Params):
    """A recurrent network over spatially pooled features."""

    hidden_dim: PositiveInt = Field(64, description="Units of the state.")
    n_layers: PositiveInt = Field(1, description="Layers.")


class ReadoutParams(Params):
    """What all readouts share."""

    n_units: PositiveInt | None = Field(None, description="Units come from the session; a number given is not needed.")
    bias: bool = Field(True, description="A constant per unit, started at the unit's mean training rate.")


class GaussianReadoutParams(ReadoutParams):
    """Features weighted under one rotated 2-D Gaussian per unit, normalised to sum 1."""

    initial_std: float = Field(0.3, gt=0, description="Standard deviation at the start; half a map is 1.")
    initial_mean_scale: float = Field(0.1, ge=0, description="Spread of the centres at the start; half a map is 1.")


class GaussianEIReadoutParams(GaussianReadoutParams):
    """Separate excitatory and inhibitory Gaussians, with non-negative feature weights each."""


class LinearReadoutParams(ReadoutParams):
    """One weight for every feature and pixel."""


class FactorizedReadoutParams(ReadoutParams):
    """A spatial mask times feature weights (Klindt et al. 2017)."""

    normalize: bool = Field(True, description="The mask of each unit has norm 1.")
    init_noise: float = Field(0.01, gt=0, description="Spread of the weights at the start.")


class PointReadoutParams(ReadoutParams):
    """Features at one learned point per unit, sampled around it in training (Lurz et al. 2021)."""

    initial_std: float = Field(0.3, gt=0, description="Spread of the sampled point at the start; half a map is 1.")
    initial_mean_scale: float = Field(0.1, ge=0, description="Spread of the points at the start.")
    covariance: Literal["full", "diagonal", "isotropic"] = Field("full", description="What of the spread is learned.")
    predict_positions: bool = Field(False, description="Points are a learned function of the units' coordinates.")


class AttentionReadoutParams(ReadoutParams):
    """A learned query per unit attends to positions of the map (Pierzchlewicz et al. 2023)."""

    num_heads: PositiveInt = Field(1, description="Heads.")
    key_dim: PositiveInt = Field(32, description="Width of queries and keys in each head.")
    use_pos_enc: bool = Field(True, description="Add a learned embedding of the position to the keys.")


class HistoryEncoderParams(Params):
    """A perceptron over the last counts of a session's units."""

    num_lags: PositiveInt = Field(16, description="Bins of history, the newest one bin ago.")
    hidden_dims: tuple[PositiveInt, ...] = Field((32,), description="Widths of the hidden layers; none: linear.")
    act_type: str = Field("gelu", description="Activation between layers.")
    spectral_norm: bool = Field(False, description="Bound every layer's gain by 1, so that sampling stays stable.")
    bias: bool = Field(False, description="Constants in the layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that an input is dropped in training.")
    output_activation: str = Field("none", description="Activation of the output.")

    @field_validator("act_type", "output_activation")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_activation(value)


PARAMS: dict[str, dict[str, type[Params]]] = {
    "adapter": {"none": NoParams, "adapter": AdapterParams},
    "frontend": {
        "none": NoParams,
        "learnable_temporal": LearnableTemporalParams,
        "temporal_basis": TemporalBasisParams,
        "da": DynamicalAdaptationParams,
        "conv": ConvFrontendParams,
        "adapter": AdapterParams,
    },
    "convnet": {
        "none": NoParams,
        "vanilla": ConvNetParams,
        "conv": ConvNetParams,
        "cnn": ConvNetParams,
        "resnet": ResNetParams,
        "densenet": DenseNetParams,
    },
    "modulator": {"none": NoParams, "concat": ConcatParams, "film": FiLMParams, "convgru": ConvGRUModulatorParams},
    "recurrent": {
        "none": NoParams,
        "convgru": ConvRecurrentParams,
        "convlstm": ConvRecurrentParams,
        "gru": RecurrentParams,
        "lstm": RecurrentParams,
    },
    "readout": {
        "gaussian": GaussianReadoutParams,
        "gaussianei": GaussianEIReadoutParams,
        "linear": LinearReadoutParams,
        "factorized": FactorizedReadoutParams,
        "point": PointReadoutParams,
        "attention": AttentionReadoutParams,
    },
    "history_encoder": {"mlp": HistoryEncoderParams},
}
"""Parameters of every component, by part and type."""


class Part(Strict):
    """One component: its type and the parameters of that type."""

    part: ClassVar[str]

    type: str = "none"
    params: SerializeAsAny[Params] = Field(default_factory=dict)  # type: ignore[arg-type]

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: Any) -> Any:
        value = "none" if value is None else value
        known = PARAMS[cls.part]
        if not isinstance(value, str) or value not in known:
            raise PydanticCustomError(
                "unknown_type", "unknown {part} type '{type}'; {hint}",
                {"part": cls.part, "type": str(value), "hint": nearest(str(value), list(known))},
            )  # fmt: skip
        return value

    @field_validator("params", mode="before")
    @classmethod
    def _params_of_type(cls, value: Any, info: Any) -> Any:
        if "type" not in info.data:
            return NoParams()
        kind = PARAMS[cls.part][info.data["type"]]
        if isinstance(value, Params):
            value = value.model_dump(exclude_unset=True)
        try:
            return kind.model_validate({} if value is None else value)
        except ValidationError as error:
            raise PydanticCustomError("nested", "{text}", {"text": str(error), "errors": error.errors()}) from None

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """The keys that `params` may have depend on `type`."""
        reference = handler(core_schema)
        schema, default = handler.resolve_ref_schema(reference), cls.model_fields["type"].default
        null = {"type": "null"}
        schema["properties"] = {"type": {"enum": list(PARAMS[cls.part]), "default": default}, "params": {}}
        schema["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": [] if name == default else ["type"]},
                "then": {"properties": {"params": {"anyOf": [handler(kind.__pydantic_core_schema__), null]}}},
            }
            for name, kind in PARAMS[cls.part].items()
        ]
        return reference


class Adapter(Part):
    part = "adapter"


class Frontend(Part):
    part = "frontend"


class ConvNet(Part):
    part = "convnet"


class Modulator(Part):
    part = "modulator"


class Recurrent(Part):
    part = "recurrent"


class Readout(Part):
    part = "readout"
    type: str = "gaussian"


class HistoryEncoder(Part):
    part = "history_encoder"
    type: str = "mlp"


# --------------------------------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------------------------------


class ScheduleConfig(Strict):
    """How the weight of a penalty changes over epochs."""

    kind: Literal["constant", "warmup", "linear_ramp", "linear_decay"] = Field(
        "constant",
        alias="type",
        description="constant; warmup (0 until start_epoch, rising until end_epoch); linear_ramp (rising from 0 at "
        "start_epoch to lambda at end_epoch, then lambda); linear_decay (from start_lambda to lambda).",
    )
    start_epoch: int = Field(0, ge=0, description="Epoch at which the change starts.")
    end_epoch: int = Field(0, ge=0, description="Epoch at which lambda is reached.")
    start_lambda: NonNegative | None = Field(None, description="linear_decay: weight at start_epoch.")

    @model_validator(mode="before")
    @classmethod
    def _accept_kind(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """A kind alone will do; `kind` and `type` are the same key."""
        reference = handler(core_schema)
        properties = handler.resolve_ref_schema(reference)["properties"]
        properties["kind"] = properties["type"]
        return {"anyOf": [{"enum": properties["type"]["enum"]}, reference]}

    @model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        if self.end_epoch < self.start_epoch:
            raise ValueError(f"end_epoch {self.end_epoch} is before start_epoch {self.start_epoch}")
        if (self.kind == "linear_decay") != (self.start_lambda is not None):
            raise ValueError("start_lambda belongs to linear_decay, which needs it")
        return self


class RegularizerConfig(Strict):
    """A penalty on, or a proximal step after, the parameters whose names match."""

    name: str = Field(..., min_length=1, description="Name under which the penalty is logged.")
    type: Literal[
        "l1", "l2", "group_lasso", "ortho", "laplacian", "smooth_t",
        "proximal_l1", "proximal_clamp", "proximal_clamp_positive", "proximal_clamp_min",
    ] = Field(..., description="Kind of penalty, or of step after the optimizer's.")  # fmt: skip
    weight: NonNegative = Field(..., alias="lambda", description="Weight of the penalty; the bound of a clamp.")
    apply_to: tuple[str, ...] = Field(
        ..., min_length=1, description="Patterns: a parameter matches whose name contains every /-part."
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="How the weight changes.")


class BaselineConfig(Strict):
    """A positive constant per unit, added after the activation."""

    enabled: bool = Field(False, description="Whether there is one.")
    activation: Literal["softplus", "relu", "exp"] = Field("softplus", description="What makes it positive.")
    init_value: float = Field(0.01, gt=0, description="Its value at the start, counts per bin.")


class ModelConfig(Strict):
    """A model: adapter[session], frontend, convnet, modulator(behaviour), recurrent, readout[session], activation."""

    model_type: Literal["v1multi", "v1", "v1multi_history"] = Field(
        "v1multi", description="Many sessions, one session, or many with spike history."
    )
    initial_input_channels: int = Field(
        1, ge=0, description="Channels of the stimulus; 0: the model sees behaviour only."
    )
    sampling_rate: float | None = Field(None, gt=0, description="Hz; checked against the data where given.")
    height: PositiveInt | None = Field(None, description="Pixels the core sees; checked where given.")
    width: PositiveInt | None = Field(None, description="Pixels the core sees; checked where given.")
    output_activation: Literal["softplus", "relu", "exp", "none", "identity"] = Field(
        "softplus", description="From the readout to the rate. none = identity: the readout is the log of the rate."
    )
    baseline: BaselineConfig = Field(default_factory=BaselineConfig, description="A positive constant per unit.")
    lambda_pred: NonNegative = Field(0.0, description="Weight of a modulator's auxiliary loss.")
    adapter: Adapter = Field(default_factory=Adapter, description="One a session.")
    frontend: Frontend = Field(default_factory=Frontend, description="Before the convnet.")
    convnet: ConvNet = Field(default_factory=ConvNet, description="Spatio-temporal features.")
    modulator: Modulator = Field(default_factory=Modulator, description="How behaviour enters.")
    recurrent: Recurrent = Field(default_factory=Recurrent, description="Memory beyond the lags.")
    readout: Readout = Field(default_factory=Readout, description="One a session.")
    history_encoder: HistoryEncoder | None = Field(None, description="v1multi_history: what spike history adds.")
    regularization: tuple[RegularizerConfig, ...] = Field((), description="Penalties and proximal steps.")

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if (self.model_type == "v1multi_history") != (self.history_encoder is not None):
            raise ValueError("history_encoder belongs to model_type v1multi_history, which needs it")
        if self.initial_input_channels == 0 and self.modulator.type == "none":
            raise ValueError("initial_input_channels: 0 needs a modulator; the model would see nothing")
        names = [regularizer.name for regularizer in self.regularization]
        if len(set(names)) != len(names):
            raise ValueError("two regularizers share a name; they are logged by name")
        if self.lambda_pred and self.modulator.type != "convgru":
            raise ValueError("lambda_pred weighs the auxiliary loss of the convgru modulator; there is none here")
        return self


# --------------------------------------------------------------------------------------------------------------------
# Datasets
# --------------------------------------------------------------------------------------------------------------------


def _lags(value: Any) -> Any:
    """``3`` -> (3,); ``[0..32]`` (which YAML reads as the text "0..32" in a list) -> (0, 1, ..., 32)."""
    values = value if isinstance(value, list | tuple) else [value]
    lags: list[Any] = []
    for item in values:
        match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", item) if isinstance(item, str) else None
        lags += range(int(match[1]), int(match[2]) + 1) if match else [item]
    return tuple(lags)


Lags = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_lags, json_schema_input_type=int | str | list[int | str])
]


class LagsConfig(Strict):
    """Which bins, counted back from the predicted one, a model sees of each signal."""

    stim: Lags = Field((0,), description="Stimulus: 0 to n-1 without a gap.")
    robs: Lags = Field((0,), description="Spikes to predict: 0.")
    behavior: Lags = Field((0,), description="Behaviour; several lags are stacked as variables.")
    dfs: Lags = Field((0,), description="Validity of the predicted spikes: 0.")
    history: Lags = Field((), description="Spike history of v1multi_history: 1 to n.")

    @model_validator(mode="after")
    def _check(self) -> "LagsConfig":
        if self.stim != tuple(range(len(self.stim))) or not self.stim:
            raise ValueError(f"stim lags must run from 0 without a gap, such as [0..{max(self.stim, default=31)}]")
        for key in ("robs", "dfs"):
            if getattr(self, key) != (0,):
                raise ValueError(f"{key} must be 0: a count is predicted in its own bin")
        if self.history and self.history != tuple(range(1, len(self.history) + 1)):
            raise ValueError("history lags must run from 1 without a gap")
        if not self.behavior:
            raise ValueError("behavior needs at least one lag")
        return self

    @property
    def n_lags(self) -> int:
        """Number of frames that a prediction sees."""
        return len(self.stim)


class SamplingConfig(Strict):
    """Resampling to fewer bins a second."""

    source_rate: float = Field(..., gt=0, description="Bins a second of the recording, Hz; checked.")
    target_rate: float = Field(..., gt=0, description="Bins a second to model, Hz.")

    @model_validator(mode="after")
    def _whole_ratio(self) -> "SamplingConfig":
        ratio = self.source_rate / self.target_rate
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ValueError(
                f"source_rate {self.source_rate} must be a whole multiple of target_rate {self.target_rate}"
            )
        return self

    @property
    def factor(self) -> int:
        """Bins of the recording in a modelled bin."""
        return round(self.source_rate / self.target_rate)


class PixelNorm(Params):
    """(x - 127) / 255."""


class Diff(Params):
    """Difference to the bin before, within a trial; same length, 0 in a trial's first bin."""

    axis: int = Field(0, description="0: time. Another axis: along it, the first entry 0.")


class Mul(Params):
    """Multiply."""

    factor: float = Field(..., description="Factor.")


class SymLog(Params):
    """sign(x) log(1 + |x|)."""


class MaxNorm(Params):
    """Divide by the largest absolute value in the training part."""


class Smooth(Params):
    """Gaussian smoothing within a trial; looks ahead, and says so."""

    sigma: float = Field(..., gt=0, description="Standard deviation, bins.")


class Unsqueeze(Params):
    """Insert an axis."""

    dim: int = Field(-1, description="Where.")


class Cast(Params):
    """Change the number type."""

    dtype: Literal["float32", "float16", "uint8", "int16", "int32", "bool"] = Field("float32", description="Type.")


class SelectUnits(Params):
    """Keep some columns."""

    indices: Literal["cids"] | tuple[int, ...] = Field("cids", description="cids: the units to fit; or columns.")


class SplitReLU(Params):
    """relu(x) and relu(-x): doubles an axis."""

    split_dim: int = Field(-1, description="The axis.")


class FFTWhitening(Params):
    """Scale by radial spatio-temporal frequency times exp(-(f/f_0)^n), per trial."""

    f_0: float = Field(0.4, gt=0, description="Cut-off, cycles per sample (0.5 is Nyquist).")
    n: float = Field(4.0, gt=0, description="Steepness.")


TRANSFORMS: dict[str, type[Params]] = {
    "pixelnorm": PixelNorm,
    "diff": Diff,
    "mul": Mul,
    "symlog": SymLog,
    "maxnorm": MaxNorm,
    "smooth": Smooth,
    "unsqueeze": Unsqueeze,
    "cast": Cast,
    "select_units": SelectUnits,
    "splitrelu": SplitReLU,
    "temporal_basis": TemporalBasisParams,
    "dacones": DynamicalAdaptationParams,
    "fftwhitening": FFTWhitening,
}


class ValidLags(Params):
    """Same trial, tracking valid and no gap over the last bins."""

    n_lags: int = Field(
        ..., ge=0, description="Bins before the predicted one that must be valid; covers the largest lag."
    )


class MissingPct(Params):
    """Leave out bins where too many spikes of a unit fell below the detection threshold."""

    threshold: float = Field(..., ge=0, le=100, description="Per cent. A unit whose median is above it keeps all bins.")


FILTERS: dict[str, type[Params]] = {"valid_nlags": ValidLags, "missing_pct": MissingPct}


class Op(Strict):
    """One operation of a pipeline, written ``name: {params}`` or ``name``."""

    table: ClassVar[dict[str, type[Params]]]
    kind: ClassVar[str]

    name: str
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {data: {}}
        if not isinstance(data, Mapping):
            raise PydanticCustomError("op", "write an operation as 'name: {params}'", {})
        if set(data) == {"name", "params"}:
            data = {data["name"]: data["params"]}
        if len(data) != 1:
            raise PydanticCustomError("op", "one operation an entry; start each with '- '", {})
        ((name, params),) = data.items()
        if name not in cls.table:
            hint = nearest(str(name), list(cls.table))
            raise PydanticCustomError(
                "op", "unknown {kind} '{name}'; {hint}", {"kind": cls.kind, "name": name, "hint": hint}
            )
        if isinstance(params, Params):
            params = params.model_dump()
        try:
            return {"name": name, "params": cls.table[name].model_validate({} if params is None else params)}
        except ValidationError as error:
            details = {"text": str(error), "errors": error.errors(), "under": name}
            raise PydanticCustomError("nested", "{text}", details) from None

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """A name, or one name with its parameters."""
        null = {"type": "null"}
        entries = {name: {"anyOf": [handler(kind.__pydantic_core_schema__), null]} for name, kind in cls.table.items()}
        one = {"type": "object", "properties": entries, "additionalProperties": False, "maxProperties": 1}
        return {"anyOf": [{"enum": list(cls.table)}, one | {"minProperties": 1}]}


class TransformOp(Op):
    table = TRANSFORMS
    kind = "transform"


class FilterOp(Op):
    table = FILTERS
    kind = "filter"


EXPOSED = ("stim", "robs", "behavior")


class TransformConfig(Strict):
    """A pipeline from one signal of the session to one input of the model."""

    source: str = Field(..., description="stim, robs, or the name of a behaviour signal.")
    ops: tuple[TransformOp, ...] = Field((), description="Operations, in order.")
    expose_as: str | None = Field(None, description="stim, robs or behavior. Default: the pipeline's name.")
    concatenate: bool = Field(False, description="Stack with other outputs of the same expose_as, along the last axis.")


class FilterConfig(Strict):
    """A mask over bins, or bins and units; masks of one name are ANDed."""

    ops: tuple[FilterOp, ...] = Field(..., min_length=1, description="Filters, ANDed.")
    expose_as: Literal["dfs"] = Field("dfs", description="dfs: which counts are valid.")


class DatasetConfig(Strict):
    """One session, with the parent's values merged in."""

    session: str = Field("", description="Name. Default: the file's stem.")
    subject: str = Field("", description="Subject. Default: the session file's own, else the name up to the first _.")
    lab: str = Field("", description="Free label.")
    eye: str = Field("", description="Free label.")
    path: str | None = Field(None, description="Session data. Default: NAME.* in data_dir.")
    data_dir: str | None = Field(None, description="Folder of session data, relative to the YAML.")
    types: tuple[str, ...] | None = Field(None, description="Stimulus types to use, in order. Default: all.")
    cids: tuple[int, ...] | None = Field(None, description="Unit ids to fit, in this order. Default: all.")
    visual: tuple[int, ...] = Field((), description="Ids of visual units: a label.")
    qcmissing: tuple[int, ...] = Field((), description="Ids that fail on missing spikes: a label.")
    qccontam: tuple[int, ...] = Field((), description="Ids that fail on contamination: a label.")
    sampling: SamplingConfig | None = Field(None, description="Default: the recording's rate.")
    keys_lags: LagsConfig = Field(default_factory=LagsConfig, description="What a prediction sees.")
    transforms: dict[str, TransformConfig] = Field(
        default_factory=lambda: {"stim": {"source": "stim", "ops": ["pixelnorm"]}},
        description="Pipelines. Default: pixelnorm of the stimulus, no behaviour.",
    )
    datafilters: dict[str, FilterConfig] = Field(default_factory=dict, description="Masks. Windows never cross trials.")
    train_val_split: float = Field(0.8, gt=0, le=1, description="Fraction of trials to train on.")
    test_split: float = Field(0.0, ge=0, lt=1, description="Fraction of trials that training never sees.")
    seed: int = Field(1002, ge=0, description="Of the permutation of trials.")
    adapter: Adapter | None = Field(None, description="Overrides the model's.")
    readout: Readout | None = Field(None, description="Overrides the model's.")

    @model_validator(mode="after")
    def _check(self) -> "DatasetConfig":
        if self.train_val_split + self.test_split > 1 + 1e-9:
            raise ValueError("train_val_split + test_split exceed 1")
        if self.cids is not None and len(set(self.cids)) != len(self.cids):
            raise ValueError("cids repeat")
        if self.cids is not None and not self.cids:
            raise ValueError("cids is empty: no unit to fit")
        if self.types is not None and len(set(self.types)) != len(self.types):
            raise ValueError("types repeat")
        outputs: dict[str, list[str]] = {}
        for name, transform in self.transforms.items():
            outputs.setdefault(transform.expose_as or name, []).append(name)
        for output, names in outputs.items():
            if output not in EXPOSED:
                raise ValueError(
                    f"transforms.{names[0]} exposes {output!r}, which nothing reads; {nearest(output, EXPOSED)}"
                )
            if len(names) > 1 and not all(self.transforms[name].concatenate for name in names):
                raise ValueError(f"transforms {names} are all exposed as {output!r}; set concatenate: true in each")
        largest = max(self.keys_lags.n_lags - 1, *self.keys_lags.behavior)
        for name, datafilter in self.datafilters.items():
            for op in datafilter.ops:
                if isinstance(op.params, ValidLags) and op.params.n_lags < largest:
                    raise ValueError(
                        f"datafilters.{name}: valid_nlags covers {op.params.n_lags} lags, keys_lags reads {largest}; "
                        f"set n_lags: {largest} or more"
                    )
        return self


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the files by name, `model` and `dataset`, from which editors complete and check the YAML.

    A dataset file is a session's or a parent's, so its schema has the keys of both.
    """
    dataset, parent = DatasetConfig.model_json_schema(), ParentConfig.model_json_schema()
    dataset["properties"] |= parent["properties"]
    schemas = {"model": ModelConfig.model_json_schema(), "dataset": dataset}
    return {name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | s for name, s in schemas.items()}


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model YAML.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or says something that is not in the dialect.
    """
    data, node = _read(Path(path))
    return _validate(ModelConfig, data, Path(path), node)


class ParentConfig(Strict):
    """A parent file: which sessions, and values that all of them share (any key of a session)."""

    session_dir: str = Field(".", description="Folder of the session YAMLs, relative to this file.")
    sessions: tuple[str, ...] = Field(..., min_length=1, description="Names of the sessions; NAME.yaml each.")


def load_dataset_configs(
    path: str | Path, *, data_dir: str | Path | None = None, max_datasets: int | None = None
) -> list[DatasetConfig]:
    """Read a parent YAML, or a directory of session YAMLs each complete by itself (sorted by name).

    Every config returned has its `session` set, and its `path` as an absolute path where the data lie. `data_dir`
    is taken from the argument, else from ``NEUROTWIN_DATA``, else from the YAML.

    Raises
    ------
    ConfigError
        As :func:`load_model_config`; also if a session is named twice, or has no data.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        if not files:
            raise ConfigError(f"{path}: holds no .yaml file; give a parent file or a folder of session files")
        parent: dict[str, Any] = {}
        base = None
    else:
        data, node = _read(path)
        files, parent, base = [path], {}, None
        if "sessions" in data or "session_dir" in data:
            keys = set(ParentConfig.model_fields)
            known = [*keys, *DatasetConfig.model_fields]
            for key in data:
                if key not in known:
                    raise ConfigError(f"{path}:{_line(node, [key])}: unknown key {key!r}; {nearest(str(key), known)}")
            head = _validate(ParentConfig, {k: v for k, v in data.items() if k in keys}, path, node)
            parent = {k: v for k, v in data.items() if k not in keys}
            _validate(DatasetConfig, parent, path, node)
            folder = path.parent / head.session_dir
            files, base = [folder / f"{name}.yaml" for name in head.sessions], path.parent
    configs = []
    for file in files[:max_datasets]:
        data, node = _read(file)
        own_dir = data.get("data_dir")
        merged = _merge(parent, data)
        config = _validate(DatasetConfig, merged, file, node)
        config.session = config.session or file.stem
        folder = file.parent if own_dir or base is None else base
        config.path = str(_find_data(config, file, folder, data_dir))
        config.data_dir = None
        configs.append(config)
    names = [config.session for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: session {name!r} occurs twice; give each file its own `session`")
    return configs


def _find_data(config: DatasetConfig, file: Path, folder: Path, data_dir: str | Path | None) -> Path:
    """Where the data of a session lie. A file that does not exist yet is left to whoever opens it."""
    root = (
        Path(data_dir or os.environ.get("NEUROTWIN_DATA") or folder / (config.data_dir or ".")).expanduser().resolve()
    )
    if config.path is not None:
        return root / Path(config.path).expanduser()
    found = sorted(p for p in root.glob(f"{config.session}.*") if p.suffix not in (".yaml", ".yml", ".tmp"))
    if len(found) > 1:
        raise ConfigError(f"{file}: {config.session!r} could be any of {[p.name for p in found]} in {root}; set `path`")
    return found[0] if found else root / f"{config.session}.safetensors"


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, sorted(siblings))}" if siblings else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__} where keys with values are expected")
    return data, node


def _validate(kind: type[Strict], data: dict[str, Any], path: Path, node: yaml.Node | None) -> Any:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = []
        for loc, message in _flatten(error.errors()):
            line = _line(node, loc)
            where = ".".join(str(part) for part in loc)
            lines.append(f"{path}{f':{line}' if line else ''}: {f'{where}: ' if where else ''}{message}")
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _flatten(errors: Sequence[Any], prefix: tuple = ()) -> list[tuple[tuple, str]]:
    flat: list[tuple[tuple, str]] = []
    for error in errors:
        loc = (*prefix, *error["loc"])
        context = error.get("ctx", {})
        if error["type"] == "nested":
            under = (context["under"],) if "under" in context else ()
            flat += _flatten(context["errors"], (*loc, *under))
        else:
            if error["type"] == "unknown_key":
                loc = (*loc, context["key"])
            flat.append((loc, error["msg"].removeprefix("Value error, ")))
    return flat


def _line(node: yaml.Node | None, loc: Sequence[Any]) -> int | None:
    """Line of the deepest key of `loc` that the file has."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
