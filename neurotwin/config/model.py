"""The model file: the path from a frame to a rate, and what is asked of its parameters."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from .base import ConfigError, Names, NonNegative, PositiveInt, Strict
from .part import Part
from .registry import define, registered
from .training import TrainingConfig

__all__ = ["Adapter", "BaselineConfig", "ModelConfig", "Readout", "RegularizerConfig", "ScheduleConfig"]


class Adapter(Part):
    """A session's way from its frames to the grid that the core sees."""

    kind = "adapter"


class Frontend(Part):
    """Temporal filters before the convnet."""

    kind = "frontend"


class ConvNet(Part):
    """Spatio-temporal features."""

    kind = "convnet"


class Modulator(Part):
    """How behaviour enters."""

    kind = "modulator"


class Recurrent(Part):
    """Memory beyond the lags."""

    kind = "recurrent"


class Readout(Part):
    """From features to the units of a session."""

    kind = "readout"
    type: str = "gaussian"


class Shifter(Part):
    """How gaze moves what the readouts of a session look at."""

    kind = "shifter"


class HistoryEncoder(Part):
    """What the units' own past adds."""

    kind = "history_encoder"
    type: str = "mlp"


class LikelihoodConfig(Part):
    """How responses scatter about their expectation."""

    kind = "likelihood"
    type: str = "poisson"


class OutputActivation(Part):
    """From what drives a unit to its rate."""

    kind = "link"
    type: str = "auto"


def _registered(kind: str) -> Callable[[str], str]:
    """A check that a name is registered under a kind."""

    def check(value: str) -> str:
        try:
            define(kind, value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    return check


class ScheduleConfig(Strict):
    """How the weight of a penalty changes over epochs."""

    kind: Annotated[str, AfterValidator(_registered("penalty_schedule"))] = Field(
        "constant", alias="type", description="How it changes; see the schedules of penalties."
    )
    start_epoch: int = Field(0, ge=0, description="Epoch at which the change starts.")
    end_epoch: int | None = Field(
        None, ge=0, description="Epoch at which lambda is reached. Default: start_epoch, which makes a step."
    )
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
        properties["type"] |= {"enum": list(registered("penalty_schedule"))}
        properties["kind"] = properties["type"]
        return {"anyOf": [{"enum": properties["type"]["enum"]}, reference]}

    @model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        if self.end_epoch is None:
            self.end_epoch = self.start_epoch
        if self.end_epoch < self.start_epoch:
            raise ValueError(f"end_epoch {self.end_epoch} is before start_epoch {self.start_epoch}")
        if (self.kind == "linear_decay") != (self.start_lambda is not None):
            raise ValueError("start_lambda belongs to linear_decay, which needs it")
        return self


class RegularizerConfig(Strict):
    """A penalty on, or a proximal step after, the parameters whose names match."""

    name: str = Field(..., min_length=1, description="Name under which the penalty is logged.")
    type: Annotated[str, AfterValidator(_registered("penalty"))] = Field(
        ..., description="Kind of penalty, or of step after the optimizer's; see the penalties."
    )
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
    sampling_rate: float | None = Field(
        None, gt=0, description="Hz, a label: the rate is that of the data. A run says so where the two differ."
    )
    height: PositiveInt | None = Field(None, description="Pixels the core sees; checked where given.")
    width: PositiveInt | None = Field(None, description="Pixels the core sees; checked where given.")
    likelihood: LikelihoodConfig = Field(
        default_factory=LikelihoodConfig, description="How responses scatter about their expectation."
    )
    output_activation: OutputActivation = Field(
        default_factory=OutputActivation,
        description="From the readout to the rate. auto: the likelihood's own, softplus for counts. none and identity "
        "beside a likelihood of counts: the readout is the log of the rate, as with exp.",
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
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="The recipe that suits the model; flags that are given override it."
    )

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
