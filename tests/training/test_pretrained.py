"""What a new model takes over from a trained one: parts that both describe equally, and nothing else."""

import copy
import logging
from dataclasses import replace

import pytest
import torch

from neurotwin.config import ConfigError, DatasetConfig, ModelConfig
from neurotwin.data.spec import SessionSpec
from neurotwin.models import Ensemble, TwinModel
from training import MultiDatasetModel

TRANSFORMS = {
    "stim": {"source": "stim", "ops": ["pixelnorm"]},
    "run": {"source": "run", "ops": ["maxnorm"], "expose_as": "behavior", "concatenate": True},
    "pupil": {"source": "pupil", "expose_as": "behavior", "concatenate": True},
}
MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {
        "type": "vanilla",
        "params": {
            "channels": [4, 4],
            "block_configs": [
                {
                    "conv_params": {"kernel_size": [1, 3, 3]}, "norm_type": norm, "act_type": "silu",
                    "pool_params": {"type": "max", "kernel_size": [1, 2, 2], "stride": [1, 1, 1]},
                }
                for norm in ("batch", "rms")
            ],
        },
    },
    "modulator": {"type": "concat", "params": {"encoder_params": {"dims": [4, 3]}}},
    "recurrent": {"type": "convgru", "params": {"hidden_dim": 3}},
    "readout": {"type": "gaussian"},
}  # fmt: skip
CORE = ("frontend", "convnet", "modulator", "recurrent")


def spec_of(name: str = "s0_x", *, unit_ids: tuple[int, ...] = (3, 8), transforms=None, lags=0, **known) -> SessionSpec:
    """A session of two behaviour variables."""
    values = {
        "name": name, "subject": "s", "unit_ids": unit_ids, "frame_shape": (1, 12, 12), "bin_rate": 60.0, "n_lags": 8,
        "behavior_dim": 2, "pixel_scale": (2 / 255, -1.0),
        "config": DatasetConfig(
            transforms=TRANSFORMS if transforms is None else transforms,
            keys_lags={"stim": list(range(8)), "behavior": lags},
        ),
    }  # fmt: skip
    return SessionSpec(**values | known)


def changed(path: str, value: object) -> dict:
    """The model's config with another value at a path such as convnet.params.block_configs.0.act_type."""
    config = copy.deepcopy(MODEL)
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    place = config
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[last] = value
    return config


def model_of(config: dict | ModelConfig | None, specs: list[SessionSpec], **settings) -> MultiDatasetModel:
    config = ModelConfig.model_validate(config) if isinstance(config, dict) else config
    return MultiDatasetModel(config, specs, **settings)


def moved(model: MultiDatasetModel) -> MultiDatasetModel:
    """The model with other values in every parameter and buffer, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.twin.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The path of a model that knows two sessions, and its arrays."""
    twin = moved(model_of(MODEL, [spec_of(), spec_of("s1_x", unit_ids=(0, 1, 2))])).twin
    path = tmp_path_factory.mktemp("trained") / "twin.safetensors"
    twin.save(path)
    return path, {name: value.clone() for name, value in twin.state_dict().items()}


def parts_of(model: MultiDatasetModel, known: dict[str, torch.Tensor]) -> set[str]:
    """The shared parts whose arrays, running statistics included, are all those of the trained model."""
    state = model.twin.state_dict()
    assert {name.split(".")[0] for name in known} == {*CORE, "per_session"}
    return {
        part
        for part in CORE
        if all(n in state and torch.equal(state[n], v) for n, v in known.items() if n.split(".")[0] == part)
    }


def test_all_of_an_equal_model_is_taken_over_and_sessions_are_known_by_name_and_units(trained, caplog):
    path, known = trained
    caplog.set_level(logging.INFO)
    specs = [spec_of("s9_x"), spec_of("s1_x", unit_ids=(0, 1, 2)), spec_of(unit_ids=(8, 3))]
    model, fresh = (model_of(MODEL, specs, seed=5, **more) for more in ({"pretrained_checkpoint": path}, {}))
    assert parts_of(model, known) == set(CORE) and parts_of(fresh, known) == set()
    state, start = model.twin.state_dict(), fresh.twin.state_dict()
    for name, value in state.items():
        place, _, rest = name.removeprefix("per_session.").partition(".")
        if place == "1":
            assert torch.equal(value, known[f"per_session.1.{rest}"]), name
        elif place in ("0", "2"):  # another name, other units
            assert torch.equal(value, start[name]), name
    assert "starting from its frontend, convnet, modulator, recurrent, and its parts of 1 of 3 sessions" in caplog.text
    assert "anew" not in caplog.text


EYES = "convnet.params.block_configs"
REFUSED = [
    (f"{EYES}.1.norm_type", "layer", rf"{EYES}.1.norm_type was 'rms' and is 'layer'"),
    (f"{EYES}.1.norm_params", {"eps": 0.1}, rf"{EYES}.1.norm_params.eps was 1e-05 and is 0.1"),
    (f"{EYES}.0.norm_type", "rms", rf"{EYES}.0.norm_type was 'batch' and is 'rms'"),
    (f"{EYES}.0.pool_params.type", "avg", rf"{EYES}.0.pool_params.type was 'max' and is 'avg'"),
    (f"{EYES}.0.act_type", "gelu", rf"{EYES}.0.act_type was 'silu' and is 'gelu'"),
    (
        f"{EYES}.0.order",
        ["conv", "act", "norm", "pool"],
        rf"{EYES}.0.order was .* and is \['conv', 'act', 'norm', 'pool'\]",
    ),
    ("convnet.params.final_activation", "relu", "convnet.params.final_activation was 'none' and is 'relu'"),
    ("convnet.params.channels", [4, 5], r"convnet.params.channels was \[4, 4\] and is \[4, 5\]"),
    ("convnet.type", "resnet", "convnet.type was 'vanilla' and is 'resnet'"),
    ("frontend.params.kernel_size", 2, "frontend.params.kernel_size was 3 and is 2"),
    ("frontend", {"type": "none"}, "frontend.type was 'learnable_temporal' and is 'none'"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("freeze", [None, "freeze_vision", "freeze_core"])
def test_vision_that_is_described_differently_is_refused(trained, path, value, message, freeze):
    """Also where every array has the same shape, as with another norm, pool or activation."""
    settings = {} if freeze is None else {freeze: True}
    with pytest.raises(ConfigError, match=rf"does not fit the model: {message}; use the model_config") as error:
        model_of(changed(path, value), [spec_of()], pretrained_checkpoint=trained[0], **settings)
    assert "\n" not in str(error.value)


STIM = {"source": "stim", "ops": ["pixelnorm", {"dacones": {}}]}
ENTRANCES = [
    ({"bin_rate": 120.0}, "bins a second was 60.0 and is 120.0"),
    ({"pixel_scale": (1 / 255, 0.0)}, "scale of pixels was .*-1.0.* and is .*0.0"),
    ({"transforms": TRANSFORMS | {"stim": STIM}}, "transforms of the stimulus was None and is .*dacones"),
]


@pytest.mark.parametrize(("changes", "message"), ENTRANCES)
@pytest.mark.parametrize("name", ["s0_x", "s9_x"])
def test_sessions_that_reach_the_core_in_another_way_are_refused(trained, changes, message, name):
    """Whether the trained model knew the session or not; also where it is not the first."""
    first = [] if "bin_rate" in changes else [spec_of("s1_x", unit_ids=(0, 1, 2))]
    with pytest.raises(ConfigError, match=rf"does not fit: {message}.* \(session {name}\)"):
        model_of(MODEL, [*first, spec_of(name, **changes)], pretrained_checkpoint=trained[0])


def test_frames_of_other_channels_are_refused(trained):
    colour = MODEL | {"initial_input_channels": 3}
    with pytest.raises(ConfigError, match="channels of the stimulus was 1 and is 3"):
        model_of(colour, [spec_of(frame_shape=(3, 12, 12))], pretrained_checkpoint=trained[0])


def test_a_session_may_be_like_any_of_the_trained_models_own(tmp_path):
    """One model of two scales: each session has its own, and a new one may have either."""
    scales = {"s0_x": (2 / 255, -1.0), "s1_x": (1 / 255, 0.0)}
    specs = [spec_of(name, pixel_scale=scale) for name, scale in scales.items()]
    path = tmp_path / "twin.safetensors"
    moved(model_of(MODEL, specs)).twin.save(path)
    model_of(MODEL, [spec_of("s9_x", pixel_scale=scales["s1_x"])], pretrained_checkpoint=path)
    model_of(MODEL, specs[::-1], pretrained_checkpoint=path)
    with pytest.raises(ConfigError, match="scale of pixels"):
        model_of(MODEL, [spec_of("s1_x", pixel_scale=scales["s0_x"])], pretrained_checkpoint=path)


SWAPPED = {name: TRANSFORMS[name] for name in ("stim", "pupil", "run")}
OTHER_RUN = TRANSFORMS | {"run": TRANSFORMS["run"] | {"ops": ["maxnorm", "diff"]}}
BEHAVIORS = [
    ({}, {"transforms": OTHER_RUN}, "modulator", "transforms of behaviour.0.ops"),
    ({}, {"transforms": SWAPPED}, "modulator", "transforms of behaviour.0.source was 'run' and is 'pupil'"),
    ({}, {"lags": 1}, "modulator", "lags of behaviour was [0] and is [1]"),
    ({"modulator.params.encoder_params.activation": "relu"}, {}, "modulator", "activation was 'gelu' and is 'relu'"),
    ({"modulator.type": "film"}, {}, "modulator", "modulator.type was 'concat' and is 'film'"),
    ({"recurrent.params.hidden_dim": 4}, {}, "recurrent", "hidden_dim was 3 and is 4"),
    ({"recurrent": {"type": "none"}}, {}, "recurrent", "recurrent.type was 'convgru' and is 'none'"),
]


@pytest.mark.parametrize(("model", "session", "part", "message"), BEHAVIORS)
def test_other_parts_start_anew_with_a_warning_unless_all_is_frozen(trained, caplog, model, session, part, message):
    path, known = trained
    config = MODEL
    for place, value in model.items():
        config = changed(place, value)
    settings = {"pretrained_checkpoint": path, "seed": 5}
    taken = model_of(config, [spec_of(**session)], **settings)
    fresh = model_of(config, [spec_of(**session)], seed=5)
    assert {"frontend", "convnet"} <= parts_of(taken, known)
    state, start = (getattr(m.twin, part).state_dict() for m in (taken, fresh))
    assert state.keys() == start.keys() and all(torch.equal(state[key], start[key]) for key in state)
    assert f"the {part} starts anew: " in caplog.text and message in caplog.text.replace("params.", "")
    model_of(config, [spec_of(**session)], **settings, freeze_vision=True)
    with pytest.raises(ConfigError, match=r"does not fit the model: "):
        model_of(config, [spec_of(**session)], **settings, freeze_core=True)


def test_behavior_of_a_model_that_takes_none_does_not_matter(tmp_path):
    config = MODEL | {"modulator": {"type": "none"}}
    path = tmp_path / "twin.safetensors"
    moved(model_of(config, [spec_of()])).twin.save(path)
    model = model_of(config, [spec_of(transforms=OTHER_RUN)], pretrained_checkpoint=path, freeze_core=True)
    assert not any(p.requires_grad for part in CORE for p in getattr(model.twin, part).parameters())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"readout": {"type": "linear"}}, "readout"),
        ({"readout": {"type": "gaussian", "params": {"bias": False}}}, "readout"),
        ({"adapter": {"type": "affine"}}, "adapter"),
        ({"likelihood": {"type": "negative_binomial"}}, "likelihood"),
    ],
)
def test_parts_of_a_session_that_differ_start_anew_and_the_others_do_not(trained, caplog, changes, part):
    path, known = trained
    if part == "adapter":
        changes = {"adapter": {"type": "adapter", "params": {"grid_size": 12}}}
    config = MODEL | changes
    model, fresh = (model_of(config, [spec_of()], seed=5, **more) for more in ({"pretrained_checkpoint": path}, {}))
    assert f"the {part} of session s0_x starts anew: it is described differently" in caplog.text
    assert parts_of(model, known) == set(CORE)
    for name, value in model.twin.per_session[0].state_dict().items():
        if name.startswith(f"{part}."):
            assert torch.equal(value, fresh.twin.per_session[0].state_dict()[name]), name
        else:
            assert torch.equal(value, known[f"per_session.0.{name}"]), name


def test_a_session_of_its_own_readout_is_compared_with_that(trained, caplog):
    own = DatasetConfig(transforms=TRANSFORMS, keys_lags={"stim": list(range(8))}, readout={"type": "linear"})
    model_of(MODEL, [replace(spec_of(), config=own)], pretrained_checkpoint=trained[0])
    assert "the readout of session s0_x starts anew" in caplog.text


def test_without_a_model_config_that_of_the_trained_model_is_taken(trained):
    path, known = trained
    model = model_of(None, [spec_of()], pretrained_checkpoint=path, freeze_core=True)
    assert model.twin.config == ModelConfig.model_validate(MODEL)
    assert parts_of(model, known) == set(CORE)
    with pytest.raises(ConfigError, match="give a model_config, or a pretrained_checkpoint"):
        model_of(None, [spec_of()])


def test_an_ensemble_has_no_core_to_start_from(tmp_path):
    spec = spec_of(behavior_names=("run", "pupil"))
    members = [TwinModel(ModelConfig.model_validate(MODEL), [spec]) for _ in range(2)]
    path = Ensemble(members, ["runs/a", "runs/b"]).save(tmp_path / "both.safetensors")
    with pytest.raises(ConfigError, match=r"both.safetensors: is an ensemble.* members \(runs/a, runs/b\)"):
        MultiDatasetModel(ModelConfig.model_validate(MODEL), [spec], pretrained_checkpoint=path)
