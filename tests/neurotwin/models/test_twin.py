"""The network as a whole: clips equal windows, nothing looks ahead, misfits are refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from neurotwin.config import ConfigError, ModelConfig, define, registered
from neurotwin.likelihoods import ResponseStatistics
from neurotwin.models import TwinModel
from neurotwin.models.network import Streamer
from neurotwin.models.norms import BatchNorm, DivisiveNorm
from neurotwin.models.parameters import describe_parameters


def part(name: str, kind: str, **params) -> dict:
    return {name: {"type": kind, "params": params}}


def loss_of(twin: TwinModel, clips: list) -> torch.Tensor:
    """What training minimises, on clips with responses of noise: whole numbers, half of them 0."""
    total = torch.zeros(())
    for clip, rates in zip(clips, twin(clips), strict=True):
        draw = torch.Generator().manual_seed(8)
        responses = (4 * torch.rand(rates.shape, generator=draw) * torch.rand(rates.shape, generator=draw)).round()
        likelihood = twin.per_session[clip.session].likelihood
        total = total + likelihood.nll(rates, responses, torch.ones(rates.shape, dtype=torch.bool))
    return total if twin.auxiliary_loss is None else total + twin.auxiliary_loss


def test_gradients_reach_every_parameter(component, build, clips):
    twin = build(component)
    loss_of(twin, [clips(twin, 0), clips(twin, 1)]).backward()
    idle = [key for key, p in twin.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    assert (twin.auxiliary_loss is not None) == bool(twin.config.lambda_pred)


def test_nothing_looks_ahead(component, build, clips):
    twin = build(component).eval()
    batch = clips(twin, length=6)
    before = twin([batch])[0]
    changed = twin.context + 3
    batch.stimulus[:, :, changed] = 255 - batch.stimulus[:, :, changed]
    batch.behavior[:, changed] += 1
    after = twin([batch])[0]
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_behaviour_acts_in_its_own_bin(behaving, build, clips):
    twin = build(behaving).eval()
    batch = clips(twin, length=6)
    before = twin([batch])[0]
    batch.behavior[:, twin.context + 3] += 1
    moved = (twin([batch])[0] - before).abs().amax(dim=(0, 2)) > 1e-9
    assert moved.tolist() == [False] * 3 + [True] + [twin.is_recurrent] * 2


def test_the_response_of_a_bin_is_seen_by_later_ones_alone(build, clips):
    """Else a model of spike history would be given what it is to predict."""
    twin = build("history").eval()
    clip, n_lags = clips(twin, length=9), 4
    n_history = clip.history.shape[1] - 9
    before = twin([clip])[0]
    for bin in (-1, 0, 3, 8):
        changed = clip.history.clone()
        changed[:, n_history + bin] += 1
        moved = (twin([replace(clip, history=changed)])[0] - before).abs().amax(dim=(0, 2)) > 1e-9
        assert moved.nonzero().flatten().tolist() == list(range(bin + 1, min(bin + 1 + n_lags, 9)))


def test_a_state_warms_up_over_all_frames_that_a_prediction_may_see(component, build, clips):
    """Without recurrence a prediction sees the frames of its receptive field, with it all of the lags."""
    twin = build(component).eval()
    clip = clips(twin, length=1)
    assert clip.stimulus.shape[2] == (24 if twin.is_recurrent else twin.receptive_field)
    before = twin([clip])[0]
    oldest = clip.stimulus.clone()
    oldest[:, :, 0] = 255 - oldest[:, :, 0]
    behavior = clip.behavior.clone()
    behavior[:, 0] += 1
    assert not torch.equal(twin([replace(clip, stimulus=oldest, behavior=behavior)])[0], before)


def test_chunks_are_one_pass(component, build, clips, cut):
    twin = build(component).eval()
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


def test_a_streamer_that_carries_its_state_is_one_pass(component, build, clips, cut):
    """A stretch in pieces, the state carried; then another stretch, where the state starts anew."""
    twin = build(component).eval()
    streamer, stretches = Streamer(twin), [clips(twin, length=7), clips(twin, length=7)]
    for stretch in stretches:
        parts = []
        for start, stop in ((0, 3), (3, 4), (4, 7)):
            context = twin.receptive_field - 1 if start else twin.context
            parts.append(streamer(replace(cut(stretch, start, stop, context), carries=start > 0)))
        torch.testing.assert_close(torch.cat(parts, dim=1), twin([stretch])[0])


def test_a_window_is_a_clip_of_one(component, build, clips, cut):
    """Without recurrence equal to rounding; with it, the state after a warm-up of the window's length."""
    twin = build(component).eval()
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
            "type": draw(st.sampled_from(["standard", "depthwise", "factorized"])),
            "kernel_size": kernel,
            "padding": draw(st.sampled_from([[0, 0, 0], odd_or_even(kernel)])),
            "padding_mode": draw(st.sampled_from(["zeros", "replicate", "circular"])),
            "stride": draw(st.sampled_from([[1, 1, 1], [2, 1, 1], [1, 2, 2]])),
            "dilation": draw(st.sampled_from([[1, 1, 1], [2, 1, 1]])),
            "use_weight_norm": draw(st.booleans()),
            "aa_signal": draw(st.booleans()),
        },
        "norm_type": draw(st.sampled_from(["none", "batch", "instance", "layer", "rms", "grn", "divisive"])),
        "act_type": draw(st.sampled_from(["relu", "splitrelu", "mish", "square", "energy", "amplitude"])),
        "pool_params": draw(st.sampled_from([*pools, {"type": "locatt"}, {"type": "learned"}])),
        "order": ["pad", *order],
        "causal": draw(st.booleans()),
    }


@st.composite
def random_models(draw) -> dict:
    channels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    light, raised = {"filter_length": 6, "learnable_params": True}, {"history_bins": 8, "num_cosine_funcs": 3}
    filters = {"kernel_size": 4, "num_channels": 3, "init_type": "random"}
    frontends = [{}] + [
        {"type": kind, "params": params}
        for kind, params in (("learnable_temporal", filters), ("da", light), ("temporal_basis", raised))
    ]
    return {
        "adapter": draw(st.sampled_from([{}, {"type": "adapter", "params": {"grid_size": 9}}])),
        "frontend": draw(st.sampled_from(frontends)),
        "convnet": {
            "type": draw(st.sampled_from(["vanilla", "resnet", "densenet"])),
            "params": {"channels": channels, "block_configs": [draw(random_blocks()) for _ in channels]},
        },
        "modulator": {"type": draw(st.sampled_from(["none", "concat", "film"]))},
        "readout": {"type": draw(st.sampled_from(sorted(registered("readout"))))},
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
        if isinstance(module, DivisiveNorm):
            module.running_square.uniform_(), module.running_count.fill_(1)
    batch = clips(twin, length=3)
    whole = twin([batch])[0]
    for index in range(3):
        torch.testing.assert_close(twin([cut(batch, index, index + 1, twin.context)])[0][:, 0], whole[:, index])
    more = clips(twin, length=3, context=63)
    torch.testing.assert_close(twin([more])[0], twin([cut(more, 0, 3, twin.context)])[0])


def test_sessions_share_the_core_and_nothing_else(build, clips):
    twin = build("resnet").eval()
    batches = [clips(twin, 1, n_clips=3), clips(twin, 0)]
    for batch, rate in zip(batches, twin(batches), strict=True):
        torch.testing.assert_close(twin([batch])[0], rate)
    parts = {(info.session, info.part) for info in describe_parameters(twin)}
    assert parts == {(None, "frontend"), (None, "convnet"), (0, "readout"), (1, "readout")}


def test_frames_are_scaled_and_rates_positive(build, clips):
    twin = build({"readout": {"type": "pixels"}}).eval()
    batch = clips(twin)
    drive = twin.per_session[0].readout((batch.stimulus.double() - 127) / 255)
    torch.testing.assert_close(twin([batch])[0], nn.functional.softplus(drive))
    float_batch = replace(batch, stimulus=batch.stimulus.double())
    before = float_batch.stimulus.clone()
    torch.testing.assert_close(twin([float_batch]), twin([batch]))
    assert torch.equal(float_batch.stimulus, before), "the batch is not changed"


def test_initial_weights_depend_on_the_seed_alone(spec, components):
    config = ModelConfig(
        modulator={"type": "convgru"}, recurrent={"type": "lstm"}, readout={"type": "attention"},
        **components["resnet"], **components["history"],
    )  # fmt: skip
    state = torch.get_rng_state()
    first = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(3)).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.rand(7)
    second = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(3)).state_dict()
    other = TwinModel(config, [spec()], generator=torch.Generator().manual_seed(4)).state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["per_session.0.readout.features"], other["per_session.0.readout.features"])


@pytest.mark.parametrize("likelihood", registered("likelihood"))
@pytest.mark.parametrize("baseline", [None, "softplus", "relu", "exp"])
def test_initial_rates_are_the_mean_responses(likelihood, baseline, spec, clips):
    """Under every link, whatever the bend of the softplus."""
    base = {"enabled": True, "activation": baseline, "init_value": 0.02} if baseline else {}
    mean = torch.tensor([0.05, 0.7, 3.0])
    for link in [*registered("link"), {"type": "softplus", "params": {"beta": 0.3, "learned": True}}]:
        config = ModelConfig(output_activation=link, baseline=base, likelihood={"type": likelihood})
        twin = TwinModel(config, [spec()])
        twin.initialise([ResponseStatistics(mean, mean + mean**2, (-mean).exp())])
        module = twin.per_session[0]
        with torch.no_grad():
            module.readout.features.zero_()
        torch.testing.assert_close(twin([clips(twin)])[0], mean.expand(2, 4, 3))
        twin.initialise([ResponseStatistics(torch.zeros(3), torch.zeros(3), torch.ones(3))])
        rates = twin([clips(twin)])[0]
        assert rates.isfinite().all(), f"{link}: silent units too"
        assert rates.max() < 0.021, link
        assert not module.likelihood.positive or rates.min() > 0 or link == "relu", link


def test_units_whose_mean_response_is_negative_start_there(spec, clips):
    twin = TwinModel(ModelConfig(likelihood="gaussian"), [spec()])
    mean = torch.tensor([-0.4, 0.0, 2.0])
    twin.initialise([ResponseStatistics(mean, torch.ones(3), torch.zeros(3))])
    with torch.no_grad():
        twin.per_session[0].readout.features.zero_()
    torch.testing.assert_close(twin([clips(twin)])[0], mean.expand(2, 4, 3))


def test_the_bend_of_the_softplus_is_learned_for_each_session(build, clips):
    twin = build("link softplus")
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = [module.link.log_beta.detach().exp().item() for module in twin.per_session]
    loss_of(twin, [clips(twin, 1)]).backward()
    optimizer.step()
    after = [module.link.log_beta.detach().exp().item() for module in twin.per_session]
    assert after[0] == before[0] and after[1] != before[1], "only the session of the step"
    info = {i.name: i for i in describe_parameters(twin)}["links.1.log_beta"]
    assert (info.kind, info.session, info.part, info.decays) == ("sharpness", 1, "link", False)
    beta, drive = after[1], twin.per_session[1].readout(torch.randn(1, 1, 2, 14, 12))
    torch.testing.assert_close(twin.per_session[1].rate(drive), nn.functional.softplus(drive, beta=beta))


def test_auxiliary_loss_carries_its_weight(build, components, clips):
    losses = []
    for weight in (0.5, 1.5):
        twin = build(components["modulating convgru"] | {"lambda_pred": weight})
        torch.manual_seed(0)
        twin([clips(twin)])
        losses.append(twin.auxiliary_loss)
    torch.testing.assert_close(losses[1], 3 * losses[0])
    twin.eval()([clips(twin)])
    assert twin.auxiliary_loss is None


FILTERS = part("frontend", "learnable_temporal", kernel_size=4, num_channels=3, init_type="random")
HISTORY = {"model_type": "v1multi_history"} | part("history_encoder", "mlp", num_lags=4, hidden_dims=[5])
COARSE = {
    "conv_params": {"kernel_size": [1, 3, 3], "padding": [0, 1, 1]},
    "pool_params": {"type": "max", "stride": [1, 15, 15]},
}


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (FILTERS, {"n_lags": 3}, r"sees 4 frames, and keys_lags gives it 3; set .*stim: \[0..3\]"),
        ({}, {"unit_ids": ()}, "ada_2: no unit to predict"),
        ({}, {"frame_shape": (3, 14, 12)}, "3 channels, and initial_input_channels is 1"),
        ({}, {"frame_shape": (1, 14, 13)}, "14x13 pixels and ada_1 14x12; use an adapter"),
        ({}, {"bin_rate": 50.0}, "50 bins a second and ada_1 100; resample"),
        ({}, {"name": "ada_1"}, "two sessions are called 'ada_1'"),
        ({"height": 51}, {}, "height: 51, but the core is given frames of 14x12"),
        ({"width": 9} | part("adapter", "adapter", grid_size=8), {}, "frames of 8x8"),
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
        (
            part("convnet", "vanilla", channels=[4], block_configs=[COARSE]),
            {},
            "15x15 on maps of 14x12 leaves no",
        ),
        ({"model_type": "v1"}, {}, "v1 is for one session, and there are 2"),
        ({"initial_input_channels": 0} | part("modulator", "concat") | FILTERS, {}, "leaves it nothing to see"),
        ({"initial_input_channels": 0} | part("modulator", "film"), {}, "film .* use concat"),
        (HISTORY, {"n_history": 3}, r"looks at 4 bins, and keys_lags gives it 3; .*\[1..4\]"),
        (
            part("readout", "point", predict_positions=True),
            {"unit_positions": None},
            "session ada_2.readout.params.predict_positions",
        ),
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
    config = FILTERS | part("modulator", "concat") | HISTORY
    twin = TwinModel(ModelConfig(**config), [spec()])
    with pytest.raises(ValueError, match=message):
        twin([replace(clips(twin), **changes)])


def test_clips_of_different_length_are_refused(build, clips):
    twin = build({})
    with pytest.raises(ValueError, match="a clip of 3 bins beside one of 4"):
        twin([clips(twin, 0), clips(twin, 1, length=3)])


SECTIONS = {
    "output_activation": "link", "likelihood": "likelihood", "history_encoder": "history_encoder", "norm_type": "norm",
    "pool_params": "pool", "adapter": "adapter", "frontend": "frontend", "convnet": "convnet", "modulator": "modulator",
    "recurrent": "recurrent", "readout": "readout", "shifter": "shifter",
}  # fmt: skip
"""Keys of a model file, and the kind of what they name."""


def test_every_component_is_tried(components):
    """So that what is registered anew is tested as the others are."""

    def named(value):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key in SECTIONS and inner and inner != "none":
                yield SECTIONS[key], inner if isinstance(inner, str) else inner["type"]
            if isinstance(inner, dict | list):
                yield from named(inner)

    tried = {(kind, define(kind, name)) for kind, name in named(list(components.values()))}
    missing = [
        f"{kind} {name}"
        for kind in SECTIONS.values()
        for name, definition in registered(kind).items()
        if name != "none" and (kind, definition) not in tried
    ]
    assert not missing, "add a small model of each to COMPONENTS"
