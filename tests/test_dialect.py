"""The dialect as labs write it: no key of a model file is without effect, and empty keys mean their defaults."""

import copy
from typing import Any, get_args

import pytest
import torch
import yaml
from neurotwin.models.spec import SessionSpec

from neurotwin.clip import Batch
from neurotwin.config import PARAMS, ConfigError, DatasetConfig, ModelConfig, Params, Strict, load_dataset_configs
from neurotwin.models.twin import TwinModel

SESSION = SessionSpec(
    name="ada_1", subject="ada", unit_ids=(4, 7), frame_shape=(1, 12, 12), bin_rate=100.0, n_lags=12, behavior_dim=2,
    behavior_names=("gaze", "pupil"), n_history=6, pixel_scale=(1 / 255, 0.0),
    unit_positions=((0.0, 1.0), (2.0, 3.0)),
)  # fmt: skip


def part(name: str, kind: str, **params: Any) -> dict[str, Any]:
    return {name: {"type": kind, "params": params}}


def net(kind: str = "vanilla", *, channels: tuple[int, ...] = (4,), **block: Any) -> dict[str, Any]:
    base = {"conv_params": {"kernel_size": [2, 5, 5], "padding": [0, 2, 2]}, "act_type": "tanh"}
    return part("convnet", kind, channels=list(channels), block_configs=[copy.deepcopy(base | block) for _ in channels])


def pool(**pool_params: Any) -> dict[str, Any]:
    return net(pool_params=pool_params)


def conv(**conv_params: Any) -> dict[str, Any]:
    return net(conv_params={"kernel_size": [2, 5, 5], "padding": [0, 2, 2]} | conv_params)


BLOCK, POOL = "convnet.params.block_configs.0.", "convnet.params.block_configs.0.pool_params."
CONV, NORM = BLOCK + "conv_params.", BLOCK + "norm_params."
FILTER, BASIS, CONES = part("frontend", "learnable_temporal", kernel_size=6), "frontend.params.", "frontend.params."
RAISED = part("frontend", "temporal_basis", history_bins=10, num_cosine_funcs=3)
LIGHT = part("frontend", "da", filter_length=8)
GRU, HISTORY = part("modulator", "convgru", hidden_dim=3), {"model_type": "v1multi_history"}
HISTORY = HISTORY | part("history_encoder", "mlp", num_lags=4, hidden_dims=[3])
FILM = part("modulator", "film", encoder_params={"dims": [4, 4]})
ENCODER = "modulator.params.encoder_params."
CHANGES: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "output_activation", "exp"), ({}, "baseline.enabled", True),
    ({"baseline": {"enabled": True}}, "baseline.activation", "exp"),
    ({"baseline": {"enabled": True}}, "baseline.init_value", 0.5), (net() | GRU, "lambda_pred", 0.5),
    # conv_params
    (net(), CONV + "type", "depthwise"), (net(), CONV + "kernel_size", [3, 5, 5]), (net(), CONV + "stride", [1, 2, 2]),
    (net(), CONV + "padding", [0, 1, 1]), (net(), CONV + "dilation", [2, 1, 1]), (net(), CONV + "bias", False),
    (net(channels=(4, 4)), "convnet.params.block_configs.1.conv_params.groups", 2),
    (net(), CONV + "padding_mode", "replicate"), (net(), CONV + "aa_signal", True),
    (conv(aa_signal=True), CONV + "aa_window", "kaiser"), (conv(aa_signal=True), CONV + "aa_window_kwargs.power", 0.5),
    (net(), CONV + "use_weight_norm", True), (net(), CONV + "keep_unit_norm", True),
    (conv(use_weight_norm=True), CONV + "weight_norm_dim", 2),
    # norms, activations, order
    *((net(), BLOCK + "norm_type", kind) for kind in ("batch", "instance", "layer", "rms", "grn")),
    (net(norm_type="group", norm_params={"num_groups": 2}), NORM + "num_groups", 4),
    (net(norm_type="rms"), NORM + "affine", False), (net(norm_type="rms"), NORM + "eps", 0.5),
    (net(norm_type="batch"), NORM + "momentum", 0.5),
    *((net(), BLOCK + "act_type", kind) for kind in (
        "none", "relu", "leakyrelu", "gelu", "sigmoid", "silu", "mish", "softplus", "bsoftplus", "splitrelu", "square",
        "ELU",
    )),
    (net(act_type="leakyrelu"), BLOCK + "act_params.negative_slope", 0.5),
    (net(act_type="softplus"), BLOCK + "act_params.beta", 2.0),
    (net(), BLOCK + "dropout", 0.5), (net(norm_type="rms"), BLOCK + "order", ["pad", "conv", "act", "norm"]),
    (net(), BLOCK + "conv_params", {"kernel_size": 3}), (net(norm_type="rms"), BLOCK + "norm_params", {"eps": 1}),
    (net(), BLOCK + "pool_params", {"type": "max"}),
    # pools
    *((net(), POOL + "type", kind) for kind in ("max", "avg", "aablur", "se_pool", "locatt", "learned")),
    *((pool(type=kind), POOL + "stride", [1, 3, 3]) for kind in ("max", "avg", "aablur", "se_pool", "learned")),
    *((pool(type=kind), POOL + "kernel_size", [1, 3, 3]) for kind in ("max", "avg", "learned")),
    *((pool(type=kind), POOL + "padding", [0, 1, 1]) for kind in ("max", "avg", "learned")),
    (pool(type="adaptivemax", output_size=[1, 3, 3]), POOL + "output_size", [1, 4, 3]),
    (pool(type="adaptiveavg", output_size=[1, 3, 3]), POOL + "output_size", [1, 4, 3]),
    (pool(type="adaptivemax", kernel_size=[1, 3, 3]), POOL + "kernel_size", [1, 4, 4]),
    (pool(type="adaptivemax", stride=[1, 2, 2]), POOL + "stride", [1, 3, 3]),
    (pool(type="adaptiveavg", kernel_size=[1, 3, 3], stride=[1, 2, 2]), POOL + "padding", [0, 1, 1]),
    (pool(type="se_pool", r=1), POOL + "r", 2), (pool(type="se_pool"), POOL + "use_soft", False),
    (pool(type="se_pool"), POOL + "use_blur", False), (pool(type="locatt"), POOL + "chan_window", 2),
    (pool(type="locatt"), POOL + "spatial_kernel", 5),
    # convnets
    *((net(channels=(3, 4)), "convnet.type", kind) for kind in ("resnet", "densenet")),
    (net(), "convnet.params.channels", [5]), (net(), "convnet.params.final_activation", "relu"),
    (net(), "convnet.params.stem_config", {"out_channels": 3}),
    (part("convnet", "vanilla", stem_config={"out_channels": 3}), "convnet.params.stem_config.out_channels", 2),
    (part("convnet", "vanilla", channels=[4]), "convnet.params.block_configs", [{"act_type": "gelu"}]),
    (net("resnet"), "convnet.params.resnet_post_add_activation", "relu"),
    # adapter and frontends
    ({}, "adapter", {"type": "adapter", "params": {"grid_size": 8}}), ({}, "frontend", {"type": "adapter"}),
    (part("adapter", "adapter", grid_size=8), "adapter.params.grid_size", 9),
    (part("adapter", "adapter", grid_size=8), "adapter.params.init_sigma", 2.5),
    (part("adapter", "adapter", grid_size=8), "adapter.params.transform", "affine"),
    (FILTER, "frontend.params.kernel_size", 7), (FILTER, "frontend.params.num_channels", 2),
    *((FILTER, "frontend.params.init_type", kind) for kind in ("biphasic", "identity", "random")),
    (FILTER, "frontend.params.bias", True), (FILTER, "frontend.params.split_MP", True),
    (FILTER, "frontend.params.dilation", 2), (FILTER | net(), "frontend.params.stride", 2),
    (FILTER, "frontend.params.aa_signal", True), (FILTER, "frontend.params.use_weight_norm", True),
    *((RAISED, BASIS + name, value) for name, value in {
        "num_delta_funcs": 2, "num_cosine_funcs": 4, "history_bins": 9, "log_spacing": False, "peak_range_ms": [5, 50],
        "bin_size_ms": 5, "normalize": False, "orthogonalize": True, "batch_norm": True, "chomp": 1,
    }.items()),
    *((LIGHT, CONES + name, value) for name, value in {
        "alpha": 2, "beta": 3, "gamma": 0.1, "tau_y_ms": 9, "tau_z_ms": 30, "n_y": 2, "n_z": 4, "filter_length": 9,
        "learnable_params": True,
    }.items()),
    (LIGHT, CONES + "learnable_params", ["alpha", "beta"]),
    (part("frontend", "conv"), "frontend.params.out_channels", 3),
    # modulators and memory
    (net() | FILM, ENCODER + "dims", [5]), (net() | FILM, ENCODER + "activation", "tanh"),
    (net() | FILM, ENCODER + "residual", False), (net() | FILM, ENCODER + "dropout", 0.5),
    (net() | FILM, ENCODER + "use_layer_norm", True), (net() | FILM, "modulator.type", "concat"),
    (net() | FILM, "modulator.params.encoder_params", {"dims": [3]}),
    (net() | part("modulator", "concat"), "modulator.params.encoder_params", {"dims": [3]}),
    *((net() | GRU, "modulator.params." + name, value) for name, value in {
        "hidden_dim": 4, "beh_emb_dim": 5, "kernel_size": 5, "use_layer_norm": False, "learnable_h0": False,
        "use_residual": False, "grad_clip_val": 1e-6, "encoder_params": {"dims": [3]},
    }.items()),
    *((net() | part("recurrent", kind, hidden_dim=3), "recurrent.params." + name, value)
      for kind, keys in {"convgru": {"kernel_size": 5}, "convlstm": {"kernel_size": 5}, "gru": {}, "lstm": {}}.items()
      for name, value in ({"hidden_dim": 4, "n_layers": 2} | keys).items()),
    # readouts, shifter, history
    *((net(), "readout", {"type": kind}) for kind in ("gaussianei", "linear", "factorized", "point", "attention")),
    *((net() | part("readout", kind), "readout.params." + name, value)
      for kind, keys in {
          "gaussian": {"initial_std": 0.6, "initial_mean_scale": 0.5}, "gaussianei": {"initial_std": 0.6}, "linear": {},
          "factorized": {"normalize": False, "init_noise": 0.5},
          "point": {"initial_std": 0.6, "initial_mean_scale": 0.5, "covariance": "diagonal", "predict_positions": True},
          "attention": {"num_heads": 2, "key_dim": 4, "use_pos_enc": False},
      }.items()
      for name, value in ({"bias": False} | keys).items()),
    ({}, "shifter", {"type": "mlp"}),
    *((part("shifter", "mlp"), "shifter.params." + name, value) for name, value in {
        "source": "gaze", "hidden_dims": [3], "act_type": "relu", "max_shift": 0.3,
    }.items()),
    *((HISTORY, "history_encoder.params." + name, value) for name, value in {
        "num_lags": 5, "hidden_dims": [], "act_type": "tanh", "spectral_norm": True, "bias": True, "dropout": 0.5,
        "output_activation": "tanh",
    }.items()),
]  # fmt: skip
"""A model, a key, and a value of it that must change the model."""

WITHOUT_EFFECT = {
    # what the data say, checked against them (tests/neurotwin/models/test_twin.py)
    "sampling_rate", "height", "width", "behavior_dim", "feature_dim", "n_units", "model_type",
    "initial_input_channels",
    # of one value only
    "split_dim",
    # memory alone
    "checkpointing",
    # clips bring the frames that a window would have to make up, so both kinds of block consume them
    "causal",
    # read by training (tests/training/test_regularizers.py)
    "regularization",
}  # fmt: skip


def test_every_key_of_a_model_is_tried():
    tried = {name for _, path, _ in CHANGES for name in path.split(".")} | {"params"}
    kinds = {kind for kinds in PARAMS.values() for kind in kinds.values()} | {ModelConfig}
    keys = {key for kind in kinds for model in (kind, *sections(kind)) for key in model.model_fields}
    assert keys - tried == WITHOUT_EFFECT


def sections(kind: type[Strict]) -> set[type[Params]]:
    """Mappings below a mapping, parts aside."""
    types = [t for field in kind.model_fields.values() for t in (field.annotation, *get_args(field.annotation))]
    inner = {t for t in types if isinstance(t, type) and issubclass(t, Params)}
    return inner.union(*(sections(t) for t in inner))


@pytest.mark.parametrize(("config", "path", "value"), CHANGES, ids=[f"{path}={value}" for _, path, value in CHANGES])
def test_a_key_does_something(config, path, value):
    changed = copy.deepcopy(config)
    owner: Any = changed
    *parents, key = path.split(".")
    for name in parents:
        owner = owner[int(name)] if name.isdigit() else owner.setdefault(name, {})
    owner[key] = value
    assert fingerprint(changed) != fingerprint(config)
    assert fingerprint(config) == fingerprint(config), "only the key makes the difference"


def fingerprint(config: dict[str, Any]) -> tuple:
    """Shapes and values before and after a training pass, the gradients, and rates in evaluation."""
    twin = TwinModel(ModelConfig.model_validate(config), [SESSION])
    start = [(name, tuple(value.shape), float(value.double().sum())) for name, value in twin.state_dict().items()]
    with torch.no_grad():
        for index, parameter in enumerate(twin.parameters()):  # away from the start, where some parts do nothing yet
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    draw = torch.Generator().manual_seed(7)
    frames, length = 12 + 3, 4
    batch = Batch(
        session=0, stimulus=torch.randint(0, 256, (2, 1, frames, 12, 12), dtype=torch.uint8, generator=draw),
        spikes=torch.zeros(2, length, 2), mask=torch.ones(2, length, 2, dtype=torch.bool), bins=torch.zeros(2).long(),
        behavior=torch.randn(2, frames, 2, generator=draw),
        history=torch.rand(2, length + 6, 2, generator=draw).round(),
    )  # fmt: skip
    torch.manual_seed(0)
    rates = twin.train()([batch])[0]
    loss = rates.square().sum() + (0 if twin.auxiliary_loss is None else twin.auxiliary_loss)
    loss.backward()
    gradients = [None if p.grad is None else round(float(p.grad.abs().sum()), 9) for p in twin.parameters()]
    buffers = [round(float(buffer.double().sum()), 9) for buffer in twin.buffers()]
    assert rates.isfinite().all()
    return start, gradients, buffers, rates.tolist(), twin.eval()([batch])[0].tolist()


@pytest.mark.parametrize("window", [
    {"stride": [1, 2, 2]}, {"kernel_size": [1, 3, 3], "stride": [1, 2, 2], "padding": [0, 1, 1]},
    {"kernel_size": [1, 4, 3], "stride": [1, 3, 2]}, {"padding": [0, 1, 1]},
])  # fmt: skip
def test_an_adaptive_pool_has_as_many_regions_as_the_window_that_it_is_given(window):
    sizes = []
    for kind in ("max", "adaptivemax"):
        config = ModelConfig.model_validate(pool(type=kind, **window))
        maps = TwinModel(config, [SESSION]).convnet.outputs
        sizes.append((maps.height, maps.width))
    assert sizes[0] == sizes[1] != (12, 12)


def test_temporal_filters_of_their_own_channel_are_as_many_groups():
    config = part("frontend", "learnable_temporal", groups=1, kernel_size=4)
    assert TwinModel(ModelConfig.model_validate(config), [SESSION]).frontend.outputs.channels == 4
    with pytest.raises(ConfigError, match="groups: 3, but filters are of one channel each, and there are 2"):
        config = part("frontend", "learnable_temporal", groups=3, split_MP=True, kernel_size=4)
        TwinModel(ModelConfig.model_validate(config), [SESSION])


# --- the lab's way of writing ---------------------------------------------------------------------------------------

MODEL = """
model_type: v1multi
initial_input_channels: 1
sampling_rate: 100
height: 12
width: 12
adapter: {type: none, params: {}}
frontend:
  type: none
  params:
convnet:
  type: resnet
  params:
    channels: [4, 4]
    stem_config:
    block_configs:
      - conv_params: {type: standard, kernel_size: [1, 5, 5], padding: [0, 2, 2], aa_signal: true, aa_window_kwargs: }
        norm_type: null
        norm_params:
        act_type: ~
        act_params: {}
        dropout: 0
        pool_params:
      - conv_params: {kernel_size: 3, stride: 1, padding: [2, 1, 1]}
        norm_type: rms
        norm_params: {affine: true}
        act_type: mish
        causal: true
    final_activation: null
modulator:
recurrent: {type: null}
readout: {type: gaussian, params: {n_units: 2, bias: true, initial_std: 0.3, initial_mean_scale: 0.1}}
baseline:
regularization:
  - {name: sparse, type: l1, lambda: 1.0e-4, apply_to: readouts/features, schedule: }
  - {name: decay, type: l2, lambda: 1e-4, apply_to: [convnet], schedule: {kind: warmup, start_epoch: 1, end_epoch: 3}}
"""

PARENT = """
session_dir: .
sessions: [ada_0501]
lab: yates
data_dir: data
types: [backimage, gaborium, gratings, fixrsvp]
sampling: {source_rate: 240, target_rate: 120}
keys_lags: {stim: [0, 1, 2, 3], robs: 0, behavior: 0, dfs: 0}
transforms:
  stim:
    source: stim
    ops:
      - pixelnorm:
  eyevel:
    source: eyevel
    ops:
      - diff: {axis: 0}
      - mul: {factor: 0.5}
      - symlog: {}
      - maxnorm
      - smooth: {sigma: 2}
      - splitrelu: {split_dim: -1}
      - temporal_basis: {num_cosine_funcs: 4, history_bins: 16, peak_range_ms: [8, 80], bin_size_ms: 8.33}
    expose_as: behavior
    concatenate: true
  pupil:
    source: pupil
    ops: [{unsqueeze: {dim: -1}}, {cast: {dtype: float32}}]
    expose_as: behavior
    concatenate: true
  robs:
    source: robs
    ops: [{select_units: {indices: cids}}]
datafilters:
  dfs:
    ops:
      - valid_nlags: {n_lags: 32}
      - missing_pct: {threshold: 45}
    expose_as: dfs
train_val_split: 0.8
seed: 1002
"""

SESSION_FILE = """
session: ada_0501
eye: right
cids: [1, 4, 9]
visual: [1, 4]
qcmissing: []
qccontam: [9]
test_split: 0.1
adapter: {type: adapter, params: {grid_size: 25, init_sigma: 1.0, transform: scale}}
readout:
transforms:
  pupil: {ops: [maxnorm: {}]}
"""


def test_a_model_file_as_labs_write_it():
    config = ModelConfig.model_validate(yaml.safe_load(MODEL))
    first, second = config.convnet.params.blocks
    assert (first.norm_type, first.act_type, first.pool_params.type) == ("none", "none", "none")
    assert (first.conv_params.stride, second.conv_params.kernel_size) == ((1, 1, 1), (3, 3, 3))
    assert config.modulator.type == config.recurrent.type == "none" and not config.baseline.enabled
    assert config.regularization[0].apply_to == ("readouts/features",)
    assert config.regularization[0].schedule.kind == "constant"
    assert TwinModel(config, [SESSION]).receptive_field == 3
    assert ModelConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_dataset_files_as_labs_write_them(tmp_path):
    (tmp_path / "parent.yaml").write_text(PARENT)
    (tmp_path / "ada_0501.yaml").write_text(SESSION_FILE)
    (config,) = load_dataset_configs(tmp_path / "parent.yaml")
    assert (config.lab, config.eye, config.cids, config.seed) == ("yates", "right", (1, 4, 9), 1002)
    assert config.adapter.params.grid_size == 25 and config.readout is None
    assert config.transforms["pupil"].source == "pupil", "merged, not replaced"
    assert [op.name for op in config.transforms["pupil"].ops] == ["maxnorm"]
    assert [op.name for op in config.transforms["eyevel"].ops] == [
        "diff", "mul", "symlog", "maxnorm", "smooth", "splitrelu", "temporal_basis",
    ]  # fmt: skip
    assert DatasetConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_a_session_has_an_adapter_and_readout_of_its_own():
    own = DatasetConfig(
        adapter={"type": "adapter", "params": {"grid_size": 12}}, readout={"type": "point", "params": {"bias": False}}
    )
    twin = TwinModel(
        ModelConfig(),
        [SESSION, SessionSpec(**vars(SESSION) | {"name": "bea_1", "config": own, "frame_shape": (1, 16, 16)})],
    )
    assert [type(readout).__name__ for readout in twin.readouts] == ["GaussianReadout", "PointReadout"]
    assert [type(adapter).__name__ for adapter in twin.adapters] == ["Identity", "Adapter"]
