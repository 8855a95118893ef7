"""The twin as a whole: clips equal windows, nothing looks ahead, files stand alone, misfits are refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from neurotwin.models.registry import MODULES, register
from neurotwin.models.spec import SessionSpec
from torch import nn

from neurotwin.config import PARAMS, ConfigError, DatasetConfig, ModelConfig, Params
from neurotwin.models import twin as twin_module
from neurotwin.models.norms import BatchNorm
from neurotwin.models.twin import CheckpointError, TwinModel, load_twin

TEMPORAL = {"type": "learnable_temporal", "params": {"kernel_size": 4, "num_channels": 3, "init_type": "random"}}
RESNET = {
    "type": "resnet",
    "params": {
        "channels": [4, 5],
        "block_configs": [
            {
                "conv_params": {"kernel_size": [2, 5, 5], "padding": 2, "aa_signal": True, "use_weight_norm": True},
                "norm_type": "rms",
                "act_type": "splitrelu",
            },
            {
                "conv_params": {"kernel_size": [2, 3, 3], "stride": [1, 2, 2]},
                "norm_type": "batch",
                "act_type": "bsoftplus",
            },
        ],
    },
}


def block(kernel=(2, 3, 3), *, norm="none", act="tanh", pool=None) -> dict:
    return {
        "conv_params": {"kernel_size": kernel, "padding": [0, kernel[1] // 2, kernel[2] // 2]}, "norm_type": norm,
        "act_type": act, "pool_params": pool or {}, "norm_params": {"num_groups": 2},
    }  # fmt: skip


def vanilla(**options) -> dict:
    return {"convnet": {"type": "vanilla", "params": {"channels": [4], "block_configs": [block(**options)]}}}


def part(name, kind, **params) -> dict:
    return {name: {"type": kind, "params": params}}


POOLS = (
    {"type": "max", "stride": 2}, {"type": "avg", "stride": [2, 2, 2]}, {"type": "aablur", "stride": 2},
    {"type": "adaptivemax", "output_size": [1, 3, 3]}, {"type": "adaptiveavg", "output_size": [1, 3, 3]},
    {"type": "se_pool", "stride": 2, "r": 1}, {"type": "locatt"}, {"type": "learned", "stride": 2},
)  # fmt: skip
COMPONENTS = {
    "resnet": {"frontend": TEMPORAL, "convnet": RESNET},
    "densenet": {"convnet": {"type": "densenet", "params": {"channels": [3, 2], "block_configs": [block(), block()]}}},
    "adapter": part("adapter", "adapter", grid_size=9) | vanilla(),
    "affine adapter": part("adapter", "adapter", grid_size=9, transform="affine") | vanilla(),
    "adapter as frontend": part("frontend", "adapter", grid_size=9),
    "split_MP": part("frontend", "learnable_temporal", kernel_size=3, num_channels=2, split_MP=True, bias=True),
    "temporal_basis": part("frontend", "temporal_basis", history_bins=8, num_cosine_funcs=3, batch_norm=True),
    "da": part("frontend", "da", filter_length=6, learnable_params=True),
    "conv": part("frontend", "conv", out_channels=3, conv_params={"kernel_size": 3}),
    **{f"norm {kind}": vanilla(norm=kind) for kind in ("batch", "instance", "layer", "rms", "group", "grn")},
    **{f"act {kind}": vanilla(act=kind) for kind in ("bsoftplus", "splitrelu", "square", "PReLU", "mish")},
    **{f"pool {pool['type']}": vanilla(pool=pool) for pool in POOLS},
    "concat": part("modulator", "concat", encoder_params={"dims": [4, 4]}) | vanilla(),
    "film": part("modulator", "film") | vanilla(),
    "modulating convgru": part("modulator", "convgru", hidden_dim=3) | vanilla() | {"lambda_pred": 0.5},
    "behaviour only": {"initial_input_channels": 0} | part("modulator", "concat") | part("readout", "linear"),
    **{kind: part("recurrent", kind, hidden_dim=3, n_layers=2) for kind in ("convgru", "convlstm")},
    **{kind: part("recurrent", kind, hidden_dim=3, n_layers=2) | part("readout", "linear") for kind in ("gru", "lstm")},
    **{
        f"readout {kind}": part("readout", kind) | vanilla()
        for kind in ("gaussian", "gaussianei", "linear", "factorized", "point", "attention")
    },
    "predicted points": part("readout", "point", predict_positions=True),
    **{
        f"shifter {kind}": part("shifter", "mlp", hidden_dims=[4]) | part("readout", kind) | vanilla()
        for kind in ("gaussian", "gaussianei", "point")
    },
    "baseline": {"baseline": {"enabled": True}},
    "history": {"model_type": "v1multi_history"}
    | part("history_encoder", "mlp", num_lags=4, hidden_dims=[5], spectral_norm=True, bias=True),
}
"""Every component, in a small model of two sessions."""
BEHAVING = [
    "concat", "film", "modulating convgru", "behaviour only", "shifter gaussian", "shifter gaussianei", "shifter point",
]  # fmt: skip
"""Those that depend on behaviour."""


@pytest.fixture
def build(spec):
    """A model of two sessions, its parameters moved away from the start, where some have no gradient yet."""

    def make(config, **changes) -> TwinModel:
        positions = ((0.0, 1.0), (2.0, 0.5), (1.0, 3.0))
        specs = [spec(name, unit_positions=positions, **changes) for name in ("ada_1", "bob_1")]
        twin = TwinModel(ModelConfig(**config), specs)
        noise = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        return twin

    return make


@pytest.mark.parametrize("name", COMPONENTS)
def test_gradients_reach_every_parameter(name, build, clips):
    twin = build(COMPONENTS[name])
    rates = twin([clips(twin, 0), clips(twin, 1)])
    loss = sum((rate * torch.randn(rate.shape)).sum() for rate in rates)
    (loss if twin.auxiliary_loss is None else loss + twin.auxiliary_loss).backward()
    idle = [key for key, p in twin.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    assert (twin.auxiliary_loss is not None) == bool(twin.config.lambda_pred)


@pytest.mark.parametrize("name", COMPONENTS)
def test_nothing_looks_ahead(name, build, clips):
    twin = build(COMPONENTS[name]).eval()
    batch = clips(twin, length=6)
    before = twin([batch])[0]
    changed = twin.context + 3
    batch.stimulus[:, :, changed] = 255 - batch.stimulus[:, :, changed]
    batch.behavior[:, changed] += 1
    after = twin([batch])[0]
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("name", BEHAVING)
def test_behaviour_acts_in_its_own_bin(name, build, clips):
    twin = build(COMPONENTS[name]).eval()
    batch = clips(twin, length=6)
    before = twin([batch])[0]
    batch.behavior[:, twin.context + 3] += 1
    moved = (twin([batch])[0] - before).abs().amax(dim=(0, 2)) > 1e-9
    assert moved.tolist() == [False] * 3 + [True] + [twin.is_recurrent] * 2


@pytest.mark.parametrize("name", COMPONENTS)
def test_chunks_are_one_pass(name, build, clips, cut):
    twin = build(COMPONENTS[name]).eval()
    batches = [clips(twin, 0, length=9), clips(twin, 1, n_clips=3, length=9)]
    whole = twin(batches)
    parts, state = [], None
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        context = twin.context if state is None else twin.receptive_field - 1
        rates, state = twin.step([cut(batch, start, stop, context) for batch in batches], state)
        parts.append(rates)
    for index in range(2):
        torch.testing.assert_close(torch.cat([part[index] for part in parts], dim=1), whole[index])
    assert (state is None) == (not twin.is_recurrent)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_window_is_a_clip_of_one(name, build, clips, cut):
    """Without recurrence equal to rounding; with it, the state after a warm-up of the window's length."""
    twin = build(COMPONENTS[name]).eval()
    batch = clips(twin, length=5)
    whole = twin([batch])[0]
    for index in range(1 if twin.is_recurrent else 5):
        window = twin([cut(batch, index, index + 1, twin.context)])[0]
        torch.testing.assert_close(window[:, 0], whole[:, index])


def odd_or_even(kernel):
    return [0, *[(size - 1) // 2 for size in kernel[1:]]]


@st.composite
def random_blocks(draw) -> dict:
    kernel = draw(st.sampled_from([[1, 1, 1], [1, 3, 3], [3, 3, 3], [2, 1, 1], [2, 5, 3], [1, 2, 4]]))
    pools = [
        {},
        {"type": "max", "stride": 2},
        {"type": "avg", "stride": [1, 2, 1]},
        {"type": "aablur"},
        {"type": "se_pool"},
    ]
    order = draw(st.permutations(["conv", "norm", "act", "pool"]))
    return {
        "conv_params": {
            "type": draw(st.sampled_from(["standard", "depthwise"])),
            "kernel_size": kernel,
            "padding": draw(st.sampled_from([[0, 0, 0], odd_or_even(kernel)])),
            "padding_mode": draw(st.sampled_from(["zeros", "replicate", "circular"])),
            "stride": draw(st.sampled_from([[1, 1, 1], [2, 1, 1], [1, 2, 2]])),
            "dilation": draw(st.sampled_from([[1, 1, 1], [2, 1, 1]])),
            "use_weight_norm": draw(st.booleans()),
            "aa_signal": draw(st.booleans()),
        },
        "norm_type": draw(st.sampled_from(["none", "batch", "instance", "layer", "rms", "grn"])),
        "act_type": draw(st.sampled_from(["relu", "splitrelu", "mish", "square"])),
        "pool_params": draw(st.sampled_from([*pools, {"type": "locatt"}, {"type": "learned"}])),
        "order": ["pad", *order],
        "causal": draw(st.booleans()),
    }


@st.composite
def random_models(draw) -> dict:
    channels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    frontends = [{}, TEMPORAL, COMPONENTS["da"]["frontend"], COMPONENTS["temporal_basis"]["frontend"]]
    return {
        "adapter": draw(st.sampled_from([{}, COMPONENTS["adapter"]["adapter"]])),
        "frontend": draw(st.sampled_from(frontends)),
        "convnet": {
            "type": draw(st.sampled_from(["vanilla", "resnet", "densenet"])),
            "params": {"channels": channels, "block_configs": [draw(random_blocks()) for _ in channels]},
        },
        "modulator": {"type": draw(st.sampled_from(["none", "concat", "film"]))},
        "readout": {"type": draw(st.sampled_from(list(PARAMS["readout"])))},
    }


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=random_models())
def test_clips_equal_windows_whatever_the_config(config, build, clips, cut):
    try:
        twin = build(config, n_lags=64).eval()
    except ConfigError:  # no pixels left, or a shortcut from outside of the map
        assume(False)
    for module in twin.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_()
    batch = clips(twin, length=3)
    whole = twin([batch])[0]
    for index in range(3):
        torch.testing.assert_close(twin([cut(batch, index, index + 1, twin.context)])[0][:, 0], whole[:, index])
    more = clips(twin, length=3, context=63)
    torch.testing.assert_close(twin([more])[0], twin([cut(more, 0, 3, twin.context)])[0])


def test_sessions_share_the_core_and_nothing_else(build, clips):
    twin = build({"frontend": TEMPORAL, "convnet": RESNET}).eval()
    batches = [clips(twin, 1, n_clips=3), clips(twin, 0)]
    for batch, rate in zip(batches, twin(batches), strict=True):
        torch.testing.assert_close(twin([batch])[0], rate)
    names = {name.split(".")[0] for name, _ in twin.named_parameters()}
    assert names == {"frontend", "convnet", "readouts"}
    assert {name for name, _ in twin.readouts[0].named_parameters()} == {"mean", "std", "theta", "features", "bias"}


def test_frames_are_scaled_and_rates_positive(build, clips):
    twin = build({"readout": {"type": "linear"}}).eval()
    batch = clips(twin)
    drive = twin.readouts[0]((batch.stimulus.double() - 127) / 255)
    torch.testing.assert_close(twin([batch])[0], nn.functional.softplus(drive))
    float_batch = replace(batch, stimulus=batch.stimulus.double())
    before = float_batch.stimulus.clone()
    torch.testing.assert_close(twin([float_batch]), twin([batch]))
    assert torch.equal(float_batch.stimulus, before), "the batch is not changed"


def test_initial_weights_depend_on_the_seed_alone(spec):
    config = ModelConfig(
        frontend=TEMPORAL, convnet=RESNET, modulator={"type": "convgru"}, recurrent={"type": "lstm"},
        readout={"type": "attention"}, **COMPONENTS["history"],
    )  # fmt: skip
    state = torch.get_rng_state()
    first = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(3)).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.rand(7)
    second = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(3)).state_dict()
    other = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(4)).state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["readouts.0.features"], other["readouts.0.features"])


@pytest.mark.parametrize("activation", ["softplus", "relu", "exp", "none", "identity"])
@pytest.mark.parametrize("baseline", [None, "softplus", "relu", "exp"])
def test_initial_rates_are_the_mean_counts(activation, baseline, spec, clips):
    base = {"enabled": True, "activation": baseline, "init_value": 0.02} if baseline else {}
    twin = TwinModel(ModelConfig(output_activation=activation, baseline=base), [spec()])
    mean = torch.tensor([0.05, 0.7, 3.0])
    twin.initialise_rates([mean])
    with torch.no_grad():
        twin.readouts[0].features.zero_()
    torch.testing.assert_close(twin([clips(twin)])[0], mean.expand(2, 4, 3))
    twin.initialise_rates([torch.zeros(3)])
    rates = twin([clips(twin)])[0]
    assert rates.isfinite().all(), "silent units too"
    assert rates.max() < 0.021


def test_auxiliary_loss_carries_its_weight(build, clips):
    losses = []
    for weight in (0.5, 1.5):
        twin = build(COMPONENTS["modulating convgru"] | {"lambda_pred": weight})
        torch.manual_seed(0)
        twin([clips(twin)])
        losses.append(twin.auxiliary_loss)
    torch.testing.assert_close(losses[1], 3 * losses[0])
    twin.eval()([clips(twin)])
    assert twin.auxiliary_loss is None


# --------------------------------------------------------------------------------------------------------------------
# Predicting
# --------------------------------------------------------------------------------------------------------------------

GAZE = DatasetConfig(
    transforms={
        "stim": {"source": "stim", "ops": [{"pixelnorm": {}}]},
        "gaze": {"source": "gaze", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior"},
    }
)


@pytest.mark.parametrize("name", ["resnet", "convgru", "history", *BEHAVING])
def test_predict_is_the_model_on_the_whole_movie(name, spec):
    config = ModelConfig(**COMPONENTS[name])
    twin = TwinModel(config, [spec(config=GAZE)])
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (40, 14, 12), dtype=np.uint8)
    gaze = rng.standard_normal((40, 2)).astype(np.float32)
    spikes = rng.poisson(0.5, (40, 3))
    more = {"spikes": spikes} if name == "history" else {}
    rates = twin.predict(movie, {"gaze": gaze}, session="ada_1", **more)
    assert twin.training, "the mode is as it was"
    assert np.isnan(rates[: twin.context]).all()
    assert np.isfinite(rates[twin.context :]).all()
    length, twin = 40 - twin.context, twin.eval()
    padded = np.concatenate([np.zeros((5, 3)), spikes])[twin.context :]
    batch = twin_module.Batch(
        session=0, stimulus=torch.as_tensor(movie)[None, None], behavior=torch.as_tensor(2 * gaze)[None].double(),
        spikes=torch.zeros(1, length, 3), mask=None, bins=None, history=torch.as_tensor(padded)[None],
    )  # fmt: skip
    expected = twin([batch])[0][0].detach()
    np.testing.assert_allclose(rates[twin.context :], expected, rtol=1e-5)
    np.testing.assert_allclose(
        twin.predict(movie[:, None], {"gaze": gaze}, session=0, chunk=3, **more), rates, rtol=1e-5
    )


def test_predict_runs_pipelines_that_are_more_than_scaling(spec):
    stim = {"source": "stim", "ops": [{"pixelnorm": {}}, {"diff": {"axis": 0}}]}
    config = DatasetConfig(transforms={"stim": stim})
    twin = TwinModel(ModelConfig(), [spec(config=config, pixel_scale=(1.0, 0.0))]).eval()
    movie = np.random.default_rng(0).integers(0, 256, (5, 14, 12), dtype=np.uint8)
    change = np.diff(movie / 255.0, axis=0, prepend=movie[:1] / 255.0)
    expected = nn.functional.softplus(twin.readouts[0](torch.as_tensor(change)[None, None]))[0]
    np.testing.assert_allclose(twin.predict(movie, session=0), expected.detach(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"session": "ada_2"}, "no session 'ada_2'; did you mean 'ada_1'"),
        ({"session": 1}, "no session 1"),
        ({"stimulus": np.zeros((30, 9, 9), np.uint8)}, r"\(1, 9, 9\) .* has \(1, 14, 12\)"),
        ({"behavior": None}, "no signal 'gaze'"),
        ({"behavior": {"gaze": np.zeros((29, 2))}}, "gaze has 29 bins where the stimulus has 30"),
    ],
)
def test_predict_says_what_is_missing(arguments, message, spec):
    twin = TwinModel(ModelConfig(**COMPONENTS["concat"]), [spec(config=GAZE)])
    usual = {"stimulus": np.zeros((30, 14, 12), np.uint8), "behavior": {"gaze": np.zeros((30, 2))}, "session": 0}
    with pytest.raises(ValueError, match=message):
        twin.predict(**usual | arguments)


def test_samples_are_poisson_counts_of_the_rates(spec):
    twin = TwinModel(ModelConfig(frontend=TEMPORAL), [spec()])
    movie = np.random.default_rng(0).integers(0, 256, (10, 14, 12), dtype=np.uint8)
    spikes, rates = twin.sample(movie, session=0, n_samples=4000)
    assert np.isnan(spikes[:, :3]).all()
    np.testing.assert_allclose(rates[0], twin.predict(movie, session=0), rtol=1e-6)
    np.testing.assert_allclose(spikes[:, 3:].mean(0), rates[0, 3:], atol=0.06)
    np.testing.assert_allclose(spikes[:, 3:].var(0), rates[0, 3:], rtol=0.15)


def test_a_glm_with_history_is_recovered_from_its_own_samples(spec):
    """Spikes drawn forward from known coupling filters; a fresh model fitted to them finds the filters."""
    config = ModelConfig(
        model_type="v1multi_history", output_activation="exp", readout={"type": "linear"},
        history_encoder={"type": "mlp", "params": {"num_lags": 3, "hidden_dims": []}},
    )  # fmt: skip
    session = spec(unit_ids=(0, 1), frame_shape=(1, 1, 1), n_history=3, pixel_scale=(1.0, 0.0))
    truth, fitted = (TwinModel(config, [session]) for _ in range(2))
    with torch.no_grad():  # rows: unit driven; columns: unit 0 from 3 bins ago to the last bin, then unit 1
        filters = torch.tensor([[-0.1, -0.4, -1.5, 0.1, 0.2, 0.5], [0.0, 0.0, 0.3, -0.2, -0.5, -1.0]])
        truth.history_encoders[0].layers[0].weight.copy_(filters)
        truth.readouts[0].bias.fill_(-1.0)
    movie = np.zeros((1000, 1, 1), np.uint8)
    spikes, rates = truth.sample(movie, session=0, n_samples=20)
    np.testing.assert_allclose(truth.predict(movie, session=0, spikes=spikes[3]), rates[3], rtol=1e-5)
    counts = torch.as_tensor(spikes).double()
    batch = twin_module.Batch(
        session=0, stimulus=torch.zeros(20, 1, 1000, 1, 1), spikes=counts, mask=None, bins=None,
        history=torch.cat([torch.zeros(20, 3, 2), counts], dim=1),
    )  # fmt: skip
    optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        rate = fitted([batch])[0]
        value = (rate - counts * rate.log()).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(fitted.history_encoders[0].layers[0].weight, filters, atol=0.12, rtol=0)
    torch.testing.assert_close(fitted.readouts[0].bias, truth.readouts[0].bias, atol=0.05, rtol=0)


def test_a_bounded_history_stays_stable(spec):
    """Filters that would explode are held by their spectral norm."""
    encoder = part("history_encoder", "mlp", num_lags=3, hidden_dims=[], spectral_norm=True)
    config = ModelConfig(model_type="v1multi_history", **encoder)
    twin = TwinModel(config, [spec()])
    with torch.no_grad():
        twin.history_encoders[0].layers[0].weight.fill_(5.0)
    _, rates = twin.sample(np.zeros((300, 14, 12), np.uint8), session=0, n_samples=3)
    assert np.isfinite(rates).all()


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet", "modulating convgru", "history", "predicted points", "affine adapter", "shifter point"]
)
def test_a_saved_model_is_the_model(name, build, clips, tmp_path):
    twin = build(COMPONENTS[name]).eval()
    loaded = load_twin(twin.save(tmp_path / "twin.safetensors"))
    assert loaded.sessions == twin.sessions
    assert loaded.config == twin.config
    batch = clips(twin)
    torch.testing.assert_close(loaded([batch]), twin([batch]), rtol=0, atol=0)
    assert not loaded.training
    weights = {f"twin.{key}": value for key, value in twin.state_dict().items()}
    torch.save({"twin": json.dumps(twin.describe()), "state_dict": weights, "epoch": 3}, tmp_path / "last.ckpt")
    torch.testing.assert_close(load_twin(tmp_path / "last.ckpt")([batch]), twin([batch]), rtol=0, atol=0)


def test_a_session_survives_json(spec):
    one = spec(config=GAZE, fitted={"gaze.0": 1.5}, unit_positions=((0.0, 1.0),) * 3)
    assert SessionSpec.from_json(json.loads(json.dumps(one.to_json()))) == one


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    target = tmp_path / "made_by_the_checkpoint"
    torch.save({"twin": Hostile(str(target)), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="more than numbers and text"):
        load_twin(tmp_path / "bad.ckpt")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.ckpt", None, "no such file"),
        ("noise.safetensors", b"noise" * 9, "not a model"),
        ("empty.ckpt", b"", "not a model"),
        ("noise.ckpt", b"noise" * 9, "not"),
    ],
)
def test_what_is_no_model_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_twin(tmp_path / name)


def test_a_checkpoint_of_other_things_is_refused(tmp_path, build):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="KeyError: 'twin'"):
        load_twin(tmp_path / "other.ckpt")
    twin = build({})
    torch.save({"twin": json.dumps(twin.describe()), "state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="Missing key"):
        load_twin(tmp_path / "bare.ckpt")


# --------------------------------------------------------------------------------------------------------------------
# Misfits
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"frontend": TEMPORAL}, {"n_lags": 3}, r"sees 4 frames, and keys_lags gives it 3; set .*stim: \[0..3\]"),
        ({}, {"unit_ids": ()}, "ada_2: no unit to predict"),
        ({}, {"frame_shape": (3, 14, 12)}, "3 channels, and initial_input_channels is 1"),
        ({}, {"frame_shape": (1, 14, 13)}, "14x13 pixels and ada_1 14x12; use an adapter"),
        ({}, {"bin_rate": 50.0}, "50 bins a second and ada_1 100; resample"),
        ({}, {"name": "ada_1"}, "two sessions are called 'ada_1'"),
        ({"sampling_rate": 240}, {}, "sampling_rate: 240 Hz, but the sessions have 100"),
        ({"height": 51}, {}, "height: 51, but the core is given frames of 14x12"),
        ({"width": 9} | COMPONENTS["adapter"] | part("adapter", "adapter", grid_size=8), {}, "frames of 8x8"),
        (part("modulator", "concat"), {"behavior_dim": 0}, "concat needs behaviour, and there is none"),
        (part("shifter", "mlp"), {"behavior_dim": 0}, "shifter mlp needs behaviour, and there is none"),
        (
            part("shifter", "mlp") | part("readout", "linear"),
            {},
            "linear has no positions .* gaussian, gaussianei, point",
        ),
        (part("shifter", "mlp") | part("recurrent", "gru"), {}, "nowhere to move on maps of 1x1"),
        (part("shifter", "mlp", source="gaez"), {"behavior_names": ("gaze",) * 2}, "'gaez' is exposed as behavior"),
        (part("modulator", "film"), {"behavior_dim": 3}, "3 behaviour variables where 2 are expected"),
        (part("modulator", "film", behavior_dim=7), {}, "2 behaviour variables where 7 are expected"),
        (part("modulator", "film", feature_dim=7), {}, "feature_dim: 7, but the convnet gives 1 channels"),
        (
            vanilla(kernel=(1, 3, 3), pool={"type": "max", "stride": [1, 15, 15]}),
            {},
            "15x15 on maps of 14x12 leaves no",
        ),
        ({"model_type": "v1"}, {}, "v1 is for one session, and there are 2"),
        (COMPONENTS["behaviour only"] | {"frontend": TEMPORAL}, {}, "leaves it nothing to see"),
        ({"initial_input_channels": 0} | part("modulator", "film"), {}, "film .* use concat"),
        (COMPONENTS["history"], {"n_history": 3}, r"looks at 4 bins, and keys_lags gives it 3; .*\[1..4\]"),
        (part("readout", "point", predict_positions=True), {}, "session ada_1.readout.params.predict_positions"),
    ],
)
def test_misfits_are_refused(config, changes, message, spec):
    with pytest.raises(ConfigError, match=message):
        TwinModel(ModelConfig(**config), [spec(), spec(**{"name": "ada_2", **changes})])


def test_one_session_is_enough_and_one_is_needed(spec):
    assert TwinModel(ModelConfig(model_type="v1"), [spec()]).context == 0
    with pytest.raises(ConfigError, match="at least one session"):
        TwinModel(ModelConfig(), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stimulus": torch.zeros(2, 1, 6, 14, 12)}, "6 frames to predict 4 bins, where the model needs 3 more"),
        ({"behavior": None}, "needs behaviour"),
        ({"history": None}, "needs spike history"),
    ],
)
def test_clips_that_lack_something_are_refused(changes, message, spec, clips):
    config = {"frontend": TEMPORAL} | part("modulator", "concat") | COMPONENTS["history"]
    twin = TwinModel(ModelConfig(**config), [spec()])
    with pytest.raises(ValueError, match=message):
        twin([replace(clips(twin), **changes)])


def test_clips_of_different_length_are_refused(build, clips):
    twin = build({})
    with pytest.raises(ValueError, match="a clip of 3 bins beside one of 4"):
        twin([clips(twin, 0), clips(twin, 1, length=3)])


# --------------------------------------------------------------------------------------------------------------------
# The registry
# --------------------------------------------------------------------------------------------------------------------


def test_every_type_of_the_dialect_has_a_module():
    params = {name: {kind: module.Params for kind, module in kinds.items()} for name, kinds in MODULES.items()}
    assert params == PARAMS


class BlankParams(Params):
    level: float = 1.0


class Blank(nn.Module):
    """A readout that sees nothing: one constant for each unit."""

    Params = BlankParams

    def __init__(self, params, inputs, n_units, **_):
        super().__init__()
        self.bias = nn.Parameter(torch.full((n_units,), params.level))

    def forward(self, x):
        return self.bias.expand(x.shape[0], x.shape[2], -1)


def test_a_component_of_ones_own(monkeypatch, spec, clips):
    for table in (PARAMS, MODULES):
        monkeypatch.setitem(table, "readout", dict(table["readout"]))
    register("readout", "blank", Blank)
    twin = TwinModel(ModelConfig(readout={"type": "blank", "params": {"level": 2.0}}), [spec()])
    torch.testing.assert_close(twin([clips(twin)])[0], nn.functional.softplus(torch.full((2, 4, 3), 2.0)))
    with pytest.raises(ValueError, match=r"did you mean 'level'\?"):
        ModelConfig(readout={"type": "blank", "params": {"levle": 2.0}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("readuot", "blank", Blank), "no part 'readuot'; did you mean 'readout'"),
        (("readout", "gaussian", Blank), "exists already"),
        (("readout", "blank", nn.Linear), "needs an attribute Params"),
    ],
)
def test_what_cannot_be_registered_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        register(*arguments)
