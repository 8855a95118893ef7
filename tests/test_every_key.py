"""No key of a model file is without effect: every field of every registered definition is changed, one at a time.

A change must change the shapes or numbers of the model, or be refused with a message that names the key, or be named
by the notice of keys that have no effect. What is tried is read from the registry, so that a new key cannot escape.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch

from neurotwin.config import (
    ConfigError,
    FlatPart,
    ModelConfig,
    Part,
    Strict,
    params_of,
    recording_reads,
    registered,
    unread_keys,
)
from neurotwin.config.notices import noticing
from neurotwin.models import TwinModel
from neurotwin.models.norms import NormParams
from neurotwin.models.parameters import describe_parameters
from training.regularizers import Regularizers

BLOCK = {
    "conv_params": {"kernel_size": [2, 5, 5], "padding": [0, 2, 2], "aa_window_kwargs": {}}, "act_type": "tanh",
    "norm_params": {"num_groups": 2}, "act_params": {}, "pool_params": {"type": "none"},
}  # fmt: skip
PENALTY = {
    "name": "sparse", "type": "l1", "lambda": 0.1, "apply_to": ["readouts/features"],
    "schedule": {"type": "linear_ramp", "start_epoch": 1, "end_epoch": 4},
}  # fmt: skip
HISTORY = {"type": "mlp", "params": {"num_lags": 4, "hidden_dims": [3]}}
SMALL: dict[str, dict[str, Any]] = {
    "adapter": {"grid_size": 8},
    "frontend adapter": {"grid_size": 8},
    "frontend learnable_temporal": {"kernel_size": 6, "aa_window_kwargs": {}},
    "frontend temporal_basis": {"history_bins": 10, "num_cosine_funcs": 3},
    "frontend da": {"filter_length": 8},
    "frontend conv": {"out_channels": 4, **BLOCK},
    "convnet": {"channels": [4], "block_configs": [BLOCK], "stem_config": {"out_channels": 4, **BLOCK}},
    "convnet transformer": {"width": 8, "hidden_dim": 6, "frames": 2, "depth": 1},
    "modulator": {"encoder_params": {"dims": [4, 4]}},
    "modulator convgru": {"encoder_params": {"dims": [4, 4]}, "hidden_dim": 3},
    "recurrent": {"hidden_dim": 3},
    "shifter": {"hidden_dims": [4]},
    "history_encoder": HISTORY["params"],
    "norm": {"num_groups": 2},
    "pool adaptivemax": {"kernel_size": [1, 3, 3], "stride": [1, 2, 2]},
    "pool adaptiveavg": {"kernel_size": [1, 3, 3], "stride": [1, 2, 2]},
    "pool se_pool": {"r": 1},
}
"""Parameters to start from, of a kind or of one definition, where the defaults are large or leave a key idle."""

CONTEXTS: dict[str, dict[str, Any]] = {
    "aa_window": {"aa_signal": True},
    "aa_window_kwargs": {"aa_signal": True},
    "aa_window_kwargs.power": {"../aa_signal": True},
    "norm_params": {"norm_type": "rms"},
    "weight_norm_dim": {"use_weight_norm": True},
    "negative_slope": {"../act_type": "leakyrelu"},
    "act_params.beta": {"../act_type": "softplus"},
    "split_dim": {"../act_type": "splitrelu"},
    "paired": {"../act_type": "energy"},
    "baseline.activation": {"enabled": True},
    "baseline.init_value": {"enabled": True},
    "lambda_pred": {"modulator": {"type": "convgru", "params": {"hidden_dim": 3}}},
    "start_lambda": {"type": "linear_decay", "start_lambda": 2.0},
    "order": {"norm_type": "rms"},
    "output_size": {"kernel_size": None, "stride": None},
    "frontend learnable_temporal.stride": {"../../convnet": {"type": "vanilla", "params": {"channels": [3]}}},
}
"""What else a key needs to have an effect, beside it or (../) above it; by the end of its path."""

NOTICED = {
    "feature_dim": "the features say how wide they are",
    "n_units": "the session says how many units there are",
    "sampling_rate": "it is a label, and the data say their own rate",
    "training": "it says how, not what, and is followed by the script: tests/training/test_recipe.py",
    "causal": "clips bring the frames that a window would have to make up, so both kinds of block consume them",
    "frontend learnable_temporal.padding_mode": "nothing is padded",
}
"""Keys that never have an effect, and why; a notice says so."""

ONE_VALUE = {
    "frontend temporal_basis.causal",
    "frontend learnable_temporal.causal",
    "frontend learnable_temporal.padding",
    "convnet densenet.dim",
    "convnet resnet.dim",
    "convnet vanilla.dim",
    "modulator convgru.num_groups",
    "modulator convgru.use_depthwise",
    "modulator convgru.use_grouped",
}
"""Keys that can have their default only."""

GUESSES: list[Any] = [
    True, False, 0, 1, 2, 3, 4, 5, 7, 9, 0.3, 0.5, 1e-6, 2.5, 6.0, 40.0, "tanh", "gelu", "rms",
    "l2", "constant", "bias", "gaze", "exp",
    ["alpha", "beta"], [], [3], [5], [1, 3, 3], [2, 1, 1], [1, 1, 1], [0, 1, 1], [3, 5, 5], [1, 4, 4], [5, 50],
    ["conv", "act", "norm"], [PENALTY], [PENALTY | {"lambda": 1.0}], {"dims": [3]}, {"type": "max"}, {"kernel_size": 3},
    {"out_channels": 2}, {"power": 0.5}, {"eps": 0.5}, {"beta": 2.0}, {"enabled": True}, {"kind": "constant"},
    [{"act_type": "gelu"}], {"type": "gaussian"}, {"type": "linear"}, {"type": "concat"}, {"type": "gru"},
    {"type": "mlp"}, {"type": "adapter", "params": {"grid_size": 8}}, {"type": "vanilla", "params": {"channels": [3]}},
    {"type": "softplus", "params": {"beta": 3.0}}, {"ema": 0.5},
]  # fmt: skip
"""Values to try; those that a key cannot have are passed over."""


@dataclass(frozen=True)
class Key:
    """A key of a model file: a model that has it, where it stands, and the field that it is.

    Attributes
    ----------
    definition
        Kind and name of what it is a parameter of; "model" for what stands at the top of a file.
    config
        The model.
    path
        From the top to the key.
    section
        The mapping that holds the key.
    """

    definition: str
    config: dict[str, Any]
    path: tuple[str | int, ...]
    section: type[Strict]

    def __str__(self) -> str:
        return f"{self.definition}: {self.dotted}"

    @property
    def name(self) -> str:
        """The key itself."""
        return str(self.path[-1])

    @property
    def owner(self) -> type:
        """The class that declares the field."""
        names = {field.alias or name: name for name, field in self.section.model_fields.items()}
        return next(kind for kind in self.section.__mro__ if names[self.name] in vars(kind).get("__annotations__", {}))

    @property
    def dotted(self) -> str:
        """The path as messages have it."""
        return ".".join(map(str, self.path))

    def listed(self, table: Any) -> Any:
        """The entry of a table by ends of paths that is for this key."""
        ends = (f"{self.definition}.{self.name}", *(".".join(map(str, self.path[-n:])) for n in (3, 2, 1)))
        return next((end for end in ends if end in table), None)

    def changed(self) -> Iterator[dict[str, Any]]:
        """Models in which the key has another value."""
        field = next(f for n, f in self.section.model_fields.items() if (f.alias or n) == self.name)
        for value in [*literals(field.annotation), *GUESSES]:
            config = copy.deepcopy(self.config)
            owner: Any = config
            for step in self.path[:-1]:
                owner = owner[step]
            owner[self.name] = value
            yield config


def literals(annotation: Any) -> list[Any]:
    """The words that a field may have."""
    found = [arg for arg in get_args(annotation) if isinstance(arg, str)]
    return found + [word for arg in get_args(annotation) if not isinstance(arg, str) for word in literals(arg)]


def model_of(kind: str, name: str) -> tuple[dict[str, Any], tuple[str | int, ...]]:
    """A small model with a definition, and the path of its parameters in it."""
    params = copy.deepcopy(SMALL.get(f"{kind} {name}", SMALL.get(kind, {})))
    net = {"convnet": {"type": "vanilla", "params": {"channels": [4], "block_configs": [copy.deepcopy(BLOCK)]}}}
    block = ("convnet", "params", "block_configs", 0)
    if kind == "norm":
        net["convnet"]["params"]["block_configs"][0] |= {"norm_type": name, "norm_params": params}
        return net, (*block, "norm_params")
    if kind == "pool":
        net["convnet"]["params"]["block_configs"][0] |= {"pool_params": {"type": name, **params}}
        return net, (*block, "pool_params")
    if kind == "history_encoder":
        return {"model_type": "v1multi_history", kind: {"type": name, "params": params}}, (kind, "params")
    key = {"link": "output_activation"}.get(kind, kind)
    base = net if kind in ("modulator", "recurrent", "readout", "shifter") else {}
    if kind == "recurrent" and name in ("gru", "lstm"):
        base = base | {"readout": {"type": "linear"}}
    return base | {key: {"type": name, "params": params}}, (key, "params")


KINDS = (
    "adapter", "frontend", "convnet", "modulator", "recurrent", "readout", "shifter", "history_encoder", "norm", "pool",
    "link", "likelihood",
)  # fmt: skip
"""Kinds of what a model file names."""


def definitions() -> Iterator[tuple[str, str]]:
    """Kind and name of everything that a model file can name; further names of the same aside."""
    for kind in KINDS:
        seen = []
        for name, definition in registered(kind).items():
            if definition not in seen and name not in ("none", "auto"):
                seen.append(definition)
                yield kind, name


def keys() -> Iterator[Key]:
    """Every key of every definition, and of the top of a file."""
    top = {"baseline": {}, "regularization": [PENALTY]}
    for name, field in ModelConfig.model_fields.items():
        if not issubclass_of(field.annotation, Part):
            yield from keys_below("model", top, (name,), ModelConfig, field)
    for kind, name in definitions():
        config, path = model_of(kind, name)
        section = NormParams if kind == "norm" else params_of(kind, name)
        for key, field in section.model_fields.items():
            yield from keys_below(f"{kind} {name}", config, (*path, field.alias or key), section, field)


def keys_below(definition: str, config: dict, path: tuple, section: type[Strict], field: Any) -> Iterator[Key]:
    """A key, and those of the mapping that it holds."""
    yield Key(definition, config, (*path[:-1], field.alias or path[-1]), section)
    inner = issubclass_of(field.annotation, Strict)
    if inner is None or issubclass(inner, Part | FlatPart) or definition.startswith("norm"):
        return
    value: Any = config
    for step in path:
        value = value[step] if isinstance(value, list) else value.get(step)
    if value is None:
        return
    below = (*path, 0) if isinstance(value, list) else path
    for name, nested in inner.model_fields.items():
        yield from keys_below(definition, config, (*below, nested.alias or name), inner, nested)


def issubclass_of(annotation: Any, kind: type) -> type | None:
    """The class of a kind that an annotation is, or has inside."""
    if isinstance(annotation, type) and issubclass(annotation, kind):
        return annotation
    return next((found for arg in get_args(annotation) if (found := issubclass_of(arg, kind))), None)


def with_context(key: Key) -> Key:
    """The key in a model in which it can have an effect."""
    listed = key.listed(CONTEXTS)
    if listed is None:
        return key
    config = copy.deepcopy(key.config)
    for name, value in CONTEXTS[listed].items():
        ups = name.count("../")
        owner: Any = config
        for step in key.path[: len(key.path) - 1 - ups]:
            owner = owner[step]
        if value is None:
            owner.pop(name, None)
        else:
            owner[name.removeprefix("../" * ups)] = value
    if key.name == "output_size":
        owner[key.name] = [1, 3, 3]
    return Key(key.definition, config, key.path, key.section)


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fingerprint(spec, clips) -> Callable[[ModelConfig], tuple]:
    """Shapes, values, losses, gradients and memory of a model, before and after a training pass, and in evaluation."""
    small = {"frame_shape": (1, 12, 12), "n_lags": 12, "unit_ids": (4, 7), "n_history": 6}
    sessions = [spec(name, **small) for name in ("ada_1", "bea_1")]

    def take(config: ModelConfig) -> tuple:
        twin = TwinModel(config, sessions)
        start = [(info.name, tuple(p.shape), p.sum().item()) for info in describe_parameters(twin)
                 for p in [info.parameter.detach()]]  # fmt: skip
        learned = [parameter.requires_grad for parameter in twin.parameters()]
        with torch.no_grad():
            for index, parameter in enumerate(twin.parameters()):  # from the start, where some parts do nothing yet
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        draw = torch.Generator().manual_seed(7)
        clip = clips(twin, context=11, generator=draw)
        responses = (3 * torch.rand(2, 4, 2, generator=draw)).floor()
        torch.manual_seed(0)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            rates = twin.train()([clip])[0]
        if not rates.isfinite().all():
            raise FloatingPointError("rates that are no numbers")
        loss = twin.per_session[0].likelihood.nll(rates, responses, torch.ones(2, 4, 2, dtype=torch.bool))
        loss = loss + rates.square().sum() + (0 if twin.auxiliary_loss is None else twin.auxiliary_loss)
        loss.backward()
        regularizers = Regularizers(config.regularization, describe_parameters(twin))
        penalties = [(e, name, v.item()) for e in (0, 2, 3, 9) for name, v in regularizers.penalty(e)[1].items()]
        sums = [None if p.grad is None else p.grad.abs().sum().item() for p in twin.parameters()]
        sums += [buffer.double().sum().item() for buffer in twin.buffers()]
        evaluated = twin.eval()([clip])[0]
        return start, learned, sum(kept), loss.item(), penalties, sums, rates.tolist(), evaluated.tolist()

    return take


@pytest.fixture(scope="module")
def verdict(fingerprint) -> Callable[[Key], str]:
    """What a change of a key does: acts, is refused, is noticed, is silent; or that it can have one value only."""
    known: dict[str, tuple] = {}

    def judge(key: Key) -> str:
        base = ModelConfig.model_validate(key.config)
        told = base.model_dump_json()
        if told not in known:
            known[told] = fingerprint(base)
        found = {"one value"}
        for config in key.changed():
            try:
                changed = ModelConfig.model_validate(config)
            except ValueError:
                continue
            if changed.model_dump_json() == told:
                continue
            try:
                with noticing() as notices, recording_reads() as reads:
                    numbers = fingerprint(changed)
            except ConfigError as error:
                found.add("refused" if key.name in str(error) else "impossible")
                continue
            except (ArithmeticError, RuntimeError, TypeError, ValueError, LookupError) as error:
                return f"{type(error).__name__}: {error}"
            if numbers != known[told]:
                return "acts"
            idle = unread_keys(changed, reads)
            said = any(f" {key.dotted} " in f"{line} " for line in notices.lines())
            said = said or any(f"{key.dotted}.".startswith(f"{name}.") for name in idle)
            found.add("noticed" if said else "silent")
        return next(word for word in ("refused", "noticed", "silent", "impossible", "one value") if word in found)

    return judge


@pytest.fixture(scope="module")
def verdicts(verdict) -> list[tuple[Key, str]]:
    """The verdict on every key."""
    return [(key, verdict(with_context(key))) for key in keys()]


def test_no_key_is_without_effect_or_notice(verdicts):
    fine = ("acts", "refused", "noticed", "one value")
    silent = [f"{key} {word}" for key, word in verdicts if word not in fine]
    assert not silent, "\n".join(["make it act, refuse it, or say in CONTEXTS what it needs:", *silent])


def test_a_notice_is_for_keys_that_act_elsewhere_or_nowhere_by_design(verdicts):
    acting = {(key.owner, key.name) for key, word in verdicts if word in ("acts", "refused")}
    idle = [
        str(key)
        for key, word in verdicts
        if word == "noticed" and (key.owner, key.name) not in acting and key.listed(NOTICED) is None
    ]
    assert not idle, "\n".join(["nothing shows that these have an effect; say in CONTEXTS what they need:", *idle])


def test_a_key_of_one_value_is_meant_so(verdicts):
    found = {f"{key.definition}.{key.name}" for key, word in verdicts if word == "one value"}
    assert found == ONE_VALUE, "\n".join(sorted(found ^ ONE_VALUE))


def test_the_same_model_gives_the_same_numbers(fingerprint):
    """Else the tests above could not tell a change from noise."""
    differing = []
    for kind, name in definitions():
        config = ModelConfig.model_validate(model_of(kind, name)[0])
        if fingerprint(config) != fingerprint(config):
            differing.append(f"{kind} {name}")
    assert not differing


def test_every_name_means_something_of_its_own(fingerprint):
    same = []
    for kind in KINDS:
        prints: dict[str, str] = {}
        for name in (name for k, name in definitions() if k == kind):
            config, _ = model_of(kind, name)
            numbers = repr(fingerprint(ModelConfig.model_validate(config)))
            if numbers in prints:
                same.append(f"{kind} {name} and {prints[numbers]}")
            prints[numbers] = name
    assert same == ["link identity and exp"], "rates of counts are positive, so that identity means the log of the rate"
