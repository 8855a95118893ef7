"""The configuration dialect as typed models: every key, what it means, what it may be.

The mechanism stands here: strict mappings, sections whose keys depend on a name, errors that name file, line, key and
the nearest valid one, JSON Schemas, and the registry of all that files can name. What is named (a readout, a transform,
a likelihood) defines its own parameters, beside its code. Code inside trusts what it is given and checks nothing twice.
"""

from .base import (
    LARGEST,
    ConfigError,
    Names,
    NonNegative,
    NullIsNone,
    Only,
    Params,
    PositiveInt,
    PositiveSize,
    Size,
    Strict,
    nearest,
    recording_reads,
    unread_keys,
)
from .changes import Change, changed, parse_changes
from .dataset import DatasetConfig, Lags, TransformConfig
from .files import ParentConfig, json_schemas, load_dataset_configs, load_model_config
from .model import BaselineConfig, ModelConfig, RegularizerConfig, ScheduleConfig
from .notices import MODEL, Notices, notice, noticing
from .part import FlatPart, NoParams, Op, Part, params_of
from .registry import KINDS, define, name_of, register, registered
from .training import AugmentationConfig, TrainingConfig, check_limit
from .yamlfile import dump_yaml

__all__ = [
    "KINDS",
    "LARGEST",
    "MODEL",
    "AugmentationConfig",
    "BaselineConfig",
    "Change",
    "ConfigError",
    "DatasetConfig",
    "FlatPart",
    "Lags",
    "ModelConfig",
    "Names",
    "NoParams",
    "NonNegative",
    "Notices",
    "NullIsNone",
    "Only",
    "Op",
    "Params",
    "ParentConfig",
    "Part",
    "PositiveInt",
    "PositiveSize",
    "RegularizerConfig",
    "ScheduleConfig",
    "Size",
    "Strict",
    "TrainingConfig",
    "TransformConfig",
    "changed",
    "check_limit",
    "define",
    "dump_yaml",
    "json_schemas",
    "load_dataset_configs",
    "load_model_config",
    "name_of",
    "nearest",
    "notice",
    "noticing",
    "params_of",
    "parse_changes",
    "recording_reads",
    "register",
    "registered",
    "unread_keys",
]
