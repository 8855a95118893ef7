"""The section `training` of a model file: how the model is trained where no flag says otherwise."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_serializer

from .base import NonNegative, Strict
from .part import FlatPart

__all__ = ["AugmentationConfig", "TrainingConfig", "check_limit"]


class AugmentationConfig(FlatPart):
    """A change of training clips that leaves their responses as they are, or nearly."""

    kind = "augmentation"


def check_limit(value: float) -> float:
    """A part of the validation: a fraction up to 1, or a whole number of trials.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if value > 1 and not float(value).is_integer():
        raise ValueError(f"{value:g}: a fraction up to 1, or a whole number of trials")
    return value


_Count = Annotated[int, Field(ge=1, le=10**6)]
_Positive = Annotated[float, Field(gt=0, le=1e9)]


class TrainingConfig(Strict):
    """The recipe of a model: each key is the value of the flag of its name, unless the flag is given.

    There is no flag for `augmentation`.
    """

    clip_len: _Count | None = Field(None, description="bins of a clip; 1 makes windows")
    balance: Literal["none", "session", "subject"] | None = Field(None, description="what is drawn equally often")
    batch_size: Annotated[int, Field(ge=1, le=10**8)] | None = Field(
        None, description="bins that a process takes in a batch, in clips of --clip_len, at least one"
    )
    learning_rate: _Positive | None = Field(None, description="of readouts and adapters")
    core_lr_scale: NonNegative | None = Field(None, le=1e9, description="times learning_rate is the core's")
    weight_decay: NonNegative | None = Field(None, le=1e9, description="of weights")
    max_epochs: _Count | None = Field(None, description="epochs to train")
    steps_per_epoch: Annotated[int, Field(ge=1, le=10**7)] | None = Field(None, description="batches of an epoch")
    gradient_clip_val: NonNegative | None = Field(None, le=1e30, description="largest gradient norm; 0: any")
    accumulate_grad_batches: Annotated[int, Field(ge=1, le=10**7)] | None = Field(
        None,
        description="batches in a step, as if they were one, except that batch norm's statistics are those of each "
        "batch",
    )
    optimizer: Literal["adamw", "muon"] | None = Field(
        None, description="adamw, or muon: orthogonalised momentum for the kernels of the core, AdamW for the rest"
    )
    lr_scheduler: str | None = Field(None, description="how learning rates change")
    warmup_epochs: Annotated[int, Field(ge=0, le=10**6)] | None = Field(
        None, description="of the learning rate and of the curriculum; 0: none"
    )
    restart_period: _Count | None = Field(
        None, description="epochs between restarts; default: a quarter of those after the warm-up"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="decay of the moving average of the weights, which is validated and kept; default: no average",
    )
    early_stopping_patience: _Count | None = Field(
        None, description="epochs without a better validation BPS; default: never stop"
    )
    early_stopping_min_delta: NonNegative | None = Field(
        None, le=1e9, description="what counts as better, bits per spike"
    )
    limit_val_batches: Annotated[float, Field(gt=0, le=1e9), AfterValidator(check_limit)] | None = Field(
        None,
        description="limits the validation trials of each session (trials, not batches): a fraction up to 1, or a "
        "number above",
    )
    augmentation: tuple[AugmentationConfig, ...] = Field(
        (), description="How training clips are changed, in this order; validation never is."
    )

    @model_serializer(mode="wrap")
    def _without_null(self, handler: Any) -> dict[str, Any]:
        """What is not said is left out."""
        return {key: value for key, value in handler(self).items() if value not in (None, (), [])}

    def given(self) -> dict[str, Any]:
        """The values of flags that stand in the file, by the name of the flag."""
        names = type(self).model_fields.keys() - {"augmentation"}
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}
