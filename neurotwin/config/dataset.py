"""The dataset file: which units, bins and signals of a session a model sees, and how they are transformed."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .base import Params, Strict, nearest
from .components import Adapter, DynamicalAdaptationParams, Readout, TemporalBasisParams

__all__ = [
    "EXPOSED",
    "FILTERS",
    "TRANSFORMS",
    "Cast",
    "DatasetConfig",
    "Diff",
    "FFTWhitening",
    "FilterConfig",
    "FilterOp",
    "Lags",
    "LagsConfig",
    "MaxNorm",
    "MissingPct",
    "Mul",
    "Op",
    "PixelNorm",
    "SamplingConfig",
    "SelectUnits",
    "Smooth",
    "SplitReLU",
    "SymLog",
    "TransformConfig",
    "TransformOp",
    "Unsqueeze",
    "ValidLags",
]


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
    """One operation on a signal."""

    table = TRANSFORMS
    kind = "transform"


class FilterOp(Op):
    """One mask over bins, or bins and units."""

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
    path: str | None = Field(None, description="Session data, a file or a folder. Default: NAME.* in data_dir.")
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
        largest = self.keys_lags.reach
        for name, datafilter in self.datafilters.items():
            for op in datafilter.ops:
                if isinstance(op.params, ValidLags) and op.params.n_lags < largest:
                    raise ValueError(
                        f"datafilters.{name}: valid_nlags covers {op.params.n_lags} lags, keys_lags reads {largest}; "
                        f"set n_lags: {largest} or more"
                    )
        return self
