"""The dataset file: which units, bins and signals of a session a model sees, and how they are transformed."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .base import LARGEST, Names, Strict, nearest
from .model import Adapter, Readout
from .part import Op

__all__ = [
    "DatasetConfig",
    "FilterConfig",
    "FilterOp",
    "Lags",
    "LagsConfig",
    "SamplingConfig",
    "TransformConfig",
    "TransformOp",
]

_EXPOSED = ("stim", "robs", "behavior", "history")


def _lags(value: Any) -> Any:
    """``3`` -> (3,); ``[0..32]`` (which YAML reads as the text "0..32" in a list) -> (0, 1, ..., 32)."""
    values = value if isinstance(value, list | tuple) else [value]
    lags: list[Any] = []
    for item in values:
        match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", item) if isinstance(item, str) else None
        lags += range(int(match[1]), min(int(match[2]), LARGEST) + 1) if match else [item]
    return tuple(lags)


Lags = Annotated[
    tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...],
    BeforeValidator(_lags, json_schema_input_type=int | str | list[int | str]),
]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


_Scalar = bool | int | float | str | None
Labels = Annotated[tuple[_Scalar, ...], BeforeValidator(_listed, json_schema_input_type=_Scalar | list[_Scalar])]
"""Numbers or words that are carried along: one, or a list."""


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

    @property
    def reach(self) -> int:
        """Largest lag of any signal, bins: as many must lie before a predicted bin in its trial."""
        return max(*self.stim, *self.behavior, *self.history)


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


class TransformOp(Op):
    """One operation on a signal."""

    kind = "transform"


class FilterOp(Op):
    """One mask over bins, or bins and units."""

    kind = "filter"


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
    path: str | None = Field(
        None,
        description="Session data: a file, a folder, or a file's URL. Default: NAME.* or the folder NAME, in data_dir.",
    )
    directory: str | None = Field(
        None, description="Where the data lie if path is absent: their folder, or one that holds NAME."
    )
    data_dir: str | None = Field(None, description="Folder of session data, relative to the YAML, or its URL.")
    types: tuple[str, ...] | None = Field(None, description="Stimulus types to use, in order. Default: all.")
    cids: tuple[int | str, ...] | None = Field(None, description="Unit ids to fit, in this order. Default: all.")
    units: dict[str, Names] = Field(
        default_factory=dict, description="Units to fit by their labels, such as {area: V1, quality: [good, mua]}."
    )
    visual: Labels = Field((), description="Ids of visual units: a label.")
    qcmissing: Labels = Field((), description="Ids that fail on missing spikes: a label.")
    qccontam: Labels = Field((), description="Ids that fail on contamination: a label.")
    cidsqc: Labels = Field((), description="Ids of units that pass quality control: a label.")
    cids_qc: Labels = Field((), description="The same under its other name: a label.")
    snr: Labels = Field((), description="Signal-to-noise ratio of units, or its threshold: a label.")
    missingth: Labels = Field((), description="Threshold of qcmissing: a label.")
    contamth: Labels = Field((), description="Threshold of qccontam: a label.")
    sampling: SamplingConfig | None = Field(None, description="Default: the recording's rate.")
    keys_lags: LagsConfig = Field(default_factory=LagsConfig, description="What a prediction sees.")
    transforms: dict[str, TransformConfig] | None = Field(
        None, description="Pipelines. Default: pixelnorm of a stimulus of pixels (uint8), no behaviour."
    )
    datafilters: dict[str, FilterConfig] = Field(default_factory=dict, description="Masks. Windows never cross trials.")
    train_val_split: float = Field(0.8, gt=0, le=1, description="Fraction of trials to train on.")
    test_split: float = Field(0.0, ge=0, lt=1, description="Fraction of trials that training never sees.")
    seed: int = Field(1002, ge=0, description="Of the permutation of trials.")
    adapter: Adapter | None = Field(None, description="Overrides the model's.")
    readout: Readout | None = Field(None, description="Overrides the model's.")

    @field_validator("session")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        """The session's prepared file is called by it."""
        if name and (name.startswith(".") or set(name) & set("/\\\0") or not name.isprintable()):
            raise ValueError(f"{name!a} must not begin with a dot or hold a slash or break: it is part of file names")
        return name

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
        for name, output, _ in self.pipelines():
            outputs.setdefault(output, []).append(name)
        for output, names in outputs.items():
            if output not in _EXPOSED:
                raise ValueError(
                    f"transforms.{names[0]} exposes {output!r}, which nothing reads; {nearest(output, _EXPOSED)}"
                )
            for name in names:
                self._check_reach(name, self.transforms[name], output)
            if len(names) > 1 and not all(self.transforms[name].concatenate for name in names):
                raise ValueError(f"transforms {names} are all exposed as {output!r}; set concatenate: true in each")
        return self

    def pipelines(self) -> list[tuple[str, str, TransformConfig]]:
        """Name, exposed name and settings of every pipeline of `transforms`, in their order."""
        return [(name, pipeline.expose_as or name, pipeline) for name, pipeline in (self.transforms or {}).items()]

    @staticmethod
    def _check_reach(name: str, transform: TransformConfig, output: str) -> None:
        """Responses reach a model as what it predicts, or as the units' past, and in no other way."""
        if transform.source == "robs" and output not in ("robs", "history"):
            raise ValueError(
                f"transforms.{name} shows the model the responses that it predicts, as {output}; their past is read "
                "by a history_encoder (expose_as: history)"
            )
        if transform.source != "robs" and output in ("robs", "history"):
            raise ValueError(f"transforms.{name}: {output} is made of the responses; set source: robs")
        if output == "history" and (idle := [op.name for op in transform.ops if op.name != "select_units"]):
            raise ValueError(
                f"transforms.{name}: {idle[0]} is not possible, the history encoder reads the responses as recorded"
            )
