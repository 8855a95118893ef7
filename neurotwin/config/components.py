"""The parameters of every component, and the table that finds them by part and type.

A component (a readout, a frontend, ...) is configured by ``{type: NAME, params: {...}}``. Each type has one
:class:`Params` class, found through :data:`PARAMS`; `neurotwin.models` pairs it with the module that it configures.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .base import Names, NullIsNone, Params, PositiveInt, Strict, nearest
from .blocks import BlockConfig, KernelParams, check_activation

__all__ = [
    "PARAMS",
    "Adapter",
    "AdapterParams",
    "AttentionReadoutParams",
    "ConcatParams",
    "ConvFrontendParams",
    "ConvGRUModulatorParams",
    "ConvNet",
    "ConvNetParams",
    "ConvRecurrentParams",
    "DenseNetParams",
    "DynamicalAdaptationParams",
    "EncoderParams",
    "FactorizedReadoutParams",
    "FiLMParams",
    "Frontend",
    "GaussianEIReadoutParams",
    "GaussianReadoutParams",
    "HistoryEncoder",
    "HistoryEncoderParams",
    "LearnableTemporalParams",
    "LinearReadoutParams",
    "Modulator",
    "ModulatorParams",
    "NoParams",
    "Part",
    "PointReadoutParams",
    "Readout",
    "ReadoutParams",
    "Recurrent",
    "RecurrentParams",
    "ResNetParams",
    "Shifter",
    "ShifterParams",
    "StemConfig",
    "TemporalBasisParams",
]


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
    padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = Field(
        "zeros", description="Nothing is padded, whatever it says."
    )
    groups: PositiveInt | None = Field(None, description="Checked: channels do not mix, so there are as many groups.")

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
    final_activation: Annotated[str, NullIsNone] = Field("none", description="Activation after the last block.")
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
    activation: Annotated[str, NullIsNone] = Field("gelu", description="Activation between layers.")
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


class ShifterParams(Params):
    """A perceptron from the gaze to a shift of all positions of a readout: max_shift * tanh(MLP(gaze)), 0 at the start.

    For readouts with positions: gaussian, gaussianei and point. The gaze enters as behaviour; give it a transform of
    its own, exposed as behavior, and scale it to about 1. A modulator sees all behaviour, the gaze included.
    """

    source: Names | None = Field(None, description="Transforms that hold the gaze, by name. Default: all behaviour.")
    hidden_dims: tuple[PositiveInt, ...] = Field((5, 5), description="Widths of the hidden layers; none: linear.")
    act_type: Annotated[str, NullIsNone] = Field("tanh", description="Activation between layers.")
    max_shift: float = Field(1.0, gt=0, description="Bound of the shift along x and y; half a map is 1.")

    @field_validator("act_type")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_activation(value)


class HistoryEncoderParams(Params):
    """A perceptron over the last counts of a session's units."""

    num_lags: PositiveInt = Field(16, description="Bins of history, the newest one bin ago.")
    hidden_dims: tuple[PositiveInt, ...] = Field((32,), description="Widths of the hidden layers; none: linear.")
    act_type: Annotated[str, NullIsNone] = Field("gelu", description="Activation between layers.")
    spectral_norm: bool = Field(False, description="Bound every layer's gain by 1, so that sampling stays stable.")
    bias: bool = Field(False, description="Constants in the layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that an input is dropped in training.")
    output_activation: Annotated[str, NullIsNone] = Field("none", description="Activation of the output.")

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
    "shifter": {"none": NoParams, "mlp": ShifterParams},
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
        kinds = [*PARAMS[cls.part], *([None] if "none" in PARAMS[cls.part] else [])]
        schema["properties"] = {"type": {"enum": kinds, "default": default}, "params": {}}
        schema["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": [] if name == default else ["type"]},
                "then": {
                    "properties": {
                        "params": {"anyOf": [kind.allow_empty(handler(kind.__pydantic_core_schema__)), null]}
                    }
                },
            }
            for name, kind in PARAMS[cls.part].items()
        ]
        return reference


class Adapter(Part):
    """A session's way from its frames to the grid that the core sees."""

    part = "adapter"


class Frontend(Part):
    """Temporal filters before the convnet."""

    part = "frontend"


class ConvNet(Part):
    """Spatio-temporal features."""

    part = "convnet"


class Modulator(Part):
    """How behaviour enters."""

    part = "modulator"


class Recurrent(Part):
    """Memory beyond the lags."""

    part = "recurrent"


class Readout(Part):
    """From features to the units of a session."""

    part = "readout"
    type: str = "gaussian"


class Shifter(Part):
    """How gaze moves what the readouts of a session look at."""

    part = "shifter"


class HistoryEncoder(Part):
    """What the units' own past adds."""

    part = "history_encoder"
    type: str = "mlp"
