"""The dialect as labs write it: empty keys mean their defaults, sessions have parts of their own."""

from dataclasses import replace

import pytest
import yaml

from neurotwin.config import ConfigError, DatasetConfig, ModelConfig, load_dataset_configs, recording_reads, unread_keys
from neurotwin.models import TwinModel


@pytest.mark.parametrize("window", [
    {"stride": [1, 2, 2]}, {"kernel_size": [1, 3, 3], "stride": [1, 2, 2], "padding": [0, 1, 1]},
    {"kernel_size": [1, 4, 3], "stride": [1, 3, 2]}, {"padding": [0, 1, 1]},
])  # fmt: skip
def test_an_adaptive_pool_has_as_many_regions_as_the_window_that_it_is_given(window, spec):
    sizes = []
    for kind in ("max", "adaptivemax"):
        block = {"conv_params": {"kernel_size": 1}, "pool_params": {"type": kind, **window}}
        net = {"type": "vanilla", "params": {"channels": [4], "block_configs": [block]}}
        maps = TwinModel(ModelConfig(convnet=net), [spec()]).convnet.outputs
        sizes.append((maps.height, maps.width))
    assert sizes[0] == sizes[1] != (14, 12)


def test_temporal_filters_of_their_own_channel_are_as_many_groups(spec):
    params = {"groups": 1, "kernel_size": 4}
    twin = TwinModel(ModelConfig(frontend={"type": "learnable_temporal", "params": params}), [spec()])
    assert twin.frontend.outputs.channels == 4
    params |= {"groups": 3, "split_MP": True}
    with pytest.raises(ConfigError, match="groups: 3, but filters are of one channel each, and there are 2"):
        TwinModel(ModelConfig(frontend={"type": "learnable_temporal", "params": params}), [spec()])


def test_keys_without_effect_are_named_as_files_have_them(spec):
    pool = {"type": "adaptiveavg", "output_size": [1, 3, 3], "stride": 2}
    block = {"conv_params": {"aa_window": "kaiser"}, "norm_params": {"eps": 0.1}, "pool_params": pool}
    net = {"type": "vanilla", "params": {"channels": [4], "block_configs": [block]}}
    config = ModelConfig(convnet=net, readout={"type": "linear", "params": {"n_units": 3}})
    with recording_reads() as reads:
        TwinModel(config, [spec(n_lags=3)])
    where = "convnet.params.block_configs.0"
    assert sorted(unread_keys(config, reads)) == [
        f"{where}.conv_params.aa_window", f"{where}.norm_params", f"{where}.pool_params.stride",
        "readout.params.n_units",
    ]  # fmt: skip


# --- the lab's way of writing ---------------------------------------------------------------------------------------

MODEL = """
model_type: v1multi
initial_input_channels: 1
sampling_rate: 100
height: 14
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
readout: {type: gaussian, params: {n_units: 3, bias: true, initial_std: 0.3, initial_mean_scale: 0.1}}
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


def test_a_model_file_as_labs_write_it(spec):
    config = ModelConfig.model_validate(yaml.safe_load(MODEL))
    first, second = config.convnet.params.blocks
    assert (first.norm_type, first.act_type, first.pool_params.type) == ("none", "none", "none")
    assert (first.conv_params.stride, second.conv_params.kernel_size) == ((1, 1, 1), (3, 3, 3))
    assert config.modulator.type == config.recurrent.type == "none" and not config.baseline.enabled
    assert config.regularization[0].apply_to == ("readouts/features",)
    assert config.regularization[0].schedule.kind == "constant"
    assert TwinModel(config, [spec()]).receptive_field == 3
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


def test_a_session_has_an_adapter_and_readout_of_its_own(spec):
    own = DatasetConfig(
        adapter={"type": "adapter", "params": {"grid_size": 14}}, readout={"type": "point", "params": {"bias": False}}
    )
    sessions = [spec(frame_shape=(1, 14, 14)), replace(spec("bea_1"), config=own, frame_shape=(1, 16, 16))]
    twin = TwinModel(ModelConfig(), sessions)
    assert [type(module.readout).__name__ for module in twin.per_session] == ["GaussianReadout", "PointReadout"]
    assert [type(module.adapter).__name__ for module in twin.per_session] == ["Identity", "Adapter"]
