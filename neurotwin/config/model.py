"""The model file: the path from a frame to a rate, and what is asked of its parameters."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Names, NonNegative, NullIsNone, PositiveInt, Strict
from .components import Adapter, ConvNet, Frontend, HistoryEncoder, Modulator, Readout, Recurrent, Shifter

__all__ = ["BaselineConfig", "ModelConfig", "RegularizerConfig", "ScheduleConfig"]


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
    apply_to: Names = Field(..., description="Patterns: a parameter matches whose name contains every /-part.")
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
    output_activation: Annotated[Literal["softplus", "relu", "exp", "none", "identity"], NullIsNone] = Field(
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
    shifter: Shifter = Field(default_factory=Shifter, description="One a session: gaze moves the readout's positions.")
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
