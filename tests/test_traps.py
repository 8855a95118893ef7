"""Faults that looked right in the code and the logs of other systems, where no other test would catch them here."""

import ast
import itertools
import re
import runpy
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

import neurotwin.data.clips as clips_module
import neurotwin.models.penalties as penalties_module
from neurotwin.analysis.evaluate import evaluate
from neurotwin.clip import Clip
from neurotwin.config import DatasetConfig, ModelConfig, registered
from neurotwin.data.clips import clip_table
from neurotwin.data.prepare import Prepared, prepare_session
from neurotwin.data.session import SPLITS, Session
from neurotwin.data.spec import SessionSpec
from neurotwin.likelihoods import Poisson
from neurotwin.models.twin import TwinModel
from training import MultiDatasetDM, MultiDatasetModel
from training.checkpoints import SafeCheckpoint
from training.processes import GradientSumStrategy

ROOT = Path(__file__).parent.parent
TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("neurotwin", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Syntax trees of the two packages by file."""
MODEL = {
    "convnet": {
        "type": "vanilla",
        "params": {
            "channels": [3],
            "block_configs": [{"conv_params": {"kernel_size": [2, 3, 3]}, "norm_type": "batch", "dropout": 0.2}],
        },
    },
}


FACTORY = runpy.run_path(str(ROOT / "tests/factories/sessions.py"))


def record(folder: Path, name: str = "ada_1", **fields) -> Session:
    """A session of noise in trials of 24 bins, saved."""
    return FACTORY["write_session"](folder, name, **{"trial_bins": 24, "unit_ids": [4, 7, 9, 12]} | fields)


def configure(folder: Path, name: str = "ada_1", **keys) -> DatasetConfig:
    return FACTORY["configure"](folder, name, **{"train_val_split": 0.7, "keys_lags": {"stim": [0, 1, 2]}} | keys)


def predictions(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def model_of(data: MultiDatasetDM, config: dict = MODEL, **settings) -> MultiDatasetModel:
    return MultiDatasetModel(
        ModelConfig.model_validate(config), data.specs, statistics=data.statistics(), learning_rate=1e-2, **settings
    )


def fit(model: MultiDatasetModel, data: MultiDatasetDM, *callbacks: pl.Callback, **options) -> pl.Trainer:
    saves = any(isinstance(callback, SafeCheckpoint) for callback in callbacks)
    defaults = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": saves,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "num_sanity_val_steps": 0, "callbacks": list(callbacks),
    }  # fmt: skip
    trainer = pl.Trainer(**defaults | options)
    trainer.fit(model, data)
    return trainer


def data_of(*configs: DatasetConfig, **settings) -> MultiDatasetDM:
    return MultiDatasetDM(configs, **{"batch_size": 16, "clip_len": 4, "steps_per_epoch": 4} | settings)


# --- sampling -------------------------------------------------------------------------------------------------------


def test_trap_02_the_contrast_of_a_clip_is_that_of_the_pixels_it_predicts_on(tmp_path):
    """Resampled, in another order of types, and with trials left out: no row is what a raw frame's index would be."""
    kinds = np.repeat(["b", "a"], 360)
    stimulus = np.random.default_rng(1).integers(0, 256, (720, 5, 6)) * np.linspace(0.1, 1, 720)[:, None, None]
    trial = np.where(np.arange(720) % 24 < 20, np.arange(720) // 24, -1)
    record(tmp_path, n_bins=720, stimulus=stimulus.astype(np.uint8), stimulus_type=kinds, trial=trial)
    sampling = {"source_rate": 60, "target_rate": 30}
    prepared = prepare_session(configure(tmp_path, types=["a", "b"], sampling=sampling))
    table = clip_table([prepared], "train", length=4)
    (sample,) = table.samples(np.arange(len(table)), context=0)
    frames = sample.clip.stimulus[:, 0].numpy()
    for row, clip in enumerate(frames):
        own = clip[: table.locate().stop[row] - table.locate().start[row]]
        assert table.contrast()[row] == pytest.approx(np.mean([frame.std() / 255 for frame in own]), rel=1e-5)


def test_trap_06_epochs_go_on_through_the_clips(tmp_path):
    """What training is given over two epochs is the sampler's stream, every clip once before any twice."""
    record(tmp_path)
    data = data_of(configure(tmp_path), steps_per_epoch=3)
    seen = []

    class Recorder(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.extend(first for part in batch.samples for first in part.clip.bins.tolist())

    fit(model_of(data), data, Recorder(), max_epochs=4)
    n_clips = len(data.table)
    assert len(seen) == 4 * 3 * 4 and 12 < n_clips < 48
    assert sorted(seen[:n_clips]) == sorted(data.table.locate().start.tolist())


# --- metrics --------------------------------------------------------------------------------------------------------


def test_trap_09_nothing_to_validate_on_is_nan(tmp_path):
    record(tmp_path)
    data = data_of(configure(tmp_path, train_val_split=1.0))
    figures = fit(model_of(data), data).callback_metrics
    assert figures["val_loss"].isnan() and figures["val_bps"].isnan() and figures["train_loss"].isfinite()


def test_trap_10_a_mask_of_one_column_is_one_of_every_unit():
    likelihood = Poisson(n_units=5)
    rates, counts = predictions(0, 2, 3, 5), predictions(1, 2, 3, 5).mul(4).round()
    column = predictions(2, 2, 3, 1) > 0.4
    expected = likelihood.nll(rates, counts, column.expand(-1, -1, 5))
    torch.testing.assert_close(likelihood.nll(rates, counts, column), expected)
    assert 0 < column.sum() < 6


def test_trap_11_a_process_without_validation_waits_for_nobody(tmp_path):
    """One trial to validate on, two processes: the figures are those of one."""
    labels = np.repeat(["train", "val"], [216, 24])
    record(tmp_path, split=labels)
    figures = []
    for n_processes in (1, 2):
        data = data_of(configure(tmp_path), batch_size=16 // n_processes, steps_per_epoch=2)
        strategy = "auto" if n_processes == 1 else GradientSumStrategy(start_method="spawn")
        config = {"readout": {"type": "pixels"}}
        trainer = fit(model_of(data, config), data, devices=n_processes, strategy=strategy, precision="64-true")
        figures.append([trainer.callback_metrics[name].item() for name in ("val_loss", "val_bps")])
    assert figures[1] == pytest.approx(figures[0], rel=1e-9)


def test_trap_13_repeats_in_the_training_part_are_no_ceiling(tmp_path):
    """The same frames shown in training too, with other responses: no figure of the test part moves."""
    rng = np.random.default_rng(3)
    labels = np.repeat(["train", "val", "test"], [120, 24, 96])
    repeat_id = np.where(labels == "test", np.arange(240) % 24, -1)
    tables = []
    for ids in (repeat_id, np.arange(240) % 24):
        record(tmp_path, split=labels, repeat_id=ids, responses=rng.poisson(1.0, (240, 4)).astype(np.uint8), seed=4)
        rng = np.random.default_rng(3)
        prepared = prepare_session(configure(tmp_path))
        twin = TwinModel(ModelConfig.model_validate(MODEL), [prepared.spec])
        tables.append(evaluate(twin, [prepared], "test"))
    for name in ("cc_norm", "cc_max", "fev", "feve", "oracle_correlation"):
        np.testing.assert_array_equal(tables[1][name], tables[0][name])
    assert np.isfinite(tables[0]["fev"]).all()


# --- optimisation ---------------------------------------------------------------------------------------------------


def test_trap_15_what_is_frozen_stays_as_it_was_trained(tmp_path):
    """Weights, and the running averages of norms; what is not frozen learns."""
    record(tmp_path)
    data = data_of(configure(tmp_path))
    trained = model_of(data)
    fit(trained, data, SafeCheckpoint(tmp_path))
    record(tmp_path, "bea_1", stimulus=np.full((240, 5, 6), 200, np.uint8))
    other = data_of(configure(tmp_path, "bea_1"))
    model = model_of(other, pretrained_checkpoint=tmp_path / "last.ckpt", freeze_vision=True)
    start = {name: value.clone() for name, value in model.twin.state_dict().items()}
    fit(model, other, max_epochs=2)
    moved = {name for name, value in model.twin.state_dict().items() if not torch.equal(value, start[name])}
    vision = {name: value for name, value in start.items() if name.startswith("convnet")}
    assert any("running" in name for name in vision) and all(name.startswith("per_session") for name in moved) and moved
    for name, value in vision.items():
        assert torch.equal(value, trained.twin.state_dict()[name])


def test_trap_17_a_proximal_step_is_taken_once_an_optimizer_step(tmp_path, monkeypatch):
    """By two accumulated micro-batches and however many groups there are."""
    calls = []
    soft_threshold = penalties_module.soft_threshold
    monkeypatch.setattr(penalties_module, "soft_threshold", lambda w, s: calls.append(w.shape) or soft_threshold(w, s))
    record(tmp_path)
    prox = {"name": "prox", "type": "proximal_l1", "lambda": 1e-3, "apply_to": ["convnet/conv.weight", "features"]}
    data = data_of(configure(tmp_path), steps_per_epoch=6, accumulate=2)
    trainer = fit(model_of(data, MODEL | {"regularization": [prox]}), data, accumulate_grad_batches=2)
    assert len(trainer.optimizers[0].param_groups) == 5, "core and session, with and without decay, and positions"
    assert trainer.global_step == 3 and len(calls) == 3 * 2


def test_trap_18_half_precision_goes_through_the_gradient_scaler(tmp_path):
    """The loss scale is undone before the step, and a step whose gradients overflow is left out."""
    record(tmp_path)
    config = {"readout": {"type": "pixels"}}
    ends = []
    for scale in (None, 2.0**10, float("inf")):
        data = data_of(configure(tmp_path))
        model = model_of(data, config)
        before = model.twin.per_session[0].readout.features.detach().clone()
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale or 1.0))
        plugin.autocast_context_manager = nullcontext  # computed in float32: only the scaler is looked at
        fit(model, data, plugins=[] if scale is None else [plugin])
        ends.append(model.twin.per_session[0].readout.features.detach() - before)
    plain, scaled, overflown = ends
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-6)
    assert not overflown.any()


SMALL = {
    ("convnet", "vanilla"): {"channels": [3], "block_configs": [{"norm_type": "batch", "act_type": "PReLU"}]},
    ("history_encoder", "mlp"): {"num_lags": 2},
    ("recurrent", "convgru"): {"hidden_dim": 3},
}
PARTS = ("adapter", "frontend", "convnet", "modulator", "recurrent", "readout", "shifter", "history_encoder")


@pytest.mark.parametrize("part", PARTS)
def test_trap_24_a_forward_pass_creates_no_weight(part):
    spec = SessionSpec(
        name="a", subject="a", unit_ids=(1, 2), frame_shape=(1, 14, 14), bin_rate=60.0, n_lags=40, behavior_dim=2,
        behavior_names=("gaze", "gaze"), n_history=2, unit_positions=((0.0, 0.0), (1.0, 1.0)),
    )  # fmt: skip
    for kind in registered(part):
        config = {part: {"type": kind, "params": SMALL.get((part, kind), {})}}
        config |= {"model_type": "v1multi_history"} if part == "history_encoder" else {}
        twin = TwinModel(ModelConfig.model_validate(config), [spec])
        before = {name: id(value) for name, value in itertools.chain(twin.named_parameters(), twin.named_buffers())}
        frames = twin.context + 2
        clip = Clip(
            0, 2, torch.zeros(1, 1, frames, 14, 14, dtype=torch.uint8), behavior=torch.zeros(1, frames, 2),
            history=torch.zeros(1, 4, 2),
        )  # fmt: skip
        twin([clip])
        after = {name: id(value) for name, value in itertools.chain(twin.named_parameters(), twin.named_buffers())}
        assert before == after, kind


# --- time and data --------------------------------------------------------------------------------------------------


def test_trap_27_storage_does_not_change_what_a_model_sees(tmp_path):
    """Frames stay uint8 up to the model; stored as another type they predict the same, raw movies included."""
    session = record(tmp_path)
    prepared = [prepare_session(configure(tmp_path), dtype=dtype) for dtype in ("uint8", "float32", "bfloat16")]
    specs = [one.spec for one in prepared]
    assert specs[0] == specs[1] == specs[2]
    (sample,) = clip_table(prepared[:1], "train", length=4).samples(np.arange(3), context=2)
    assert sample.clip.stimulus.dtype == torch.uint8 and sample.target.responses.dtype == torch.uint8
    twin = TwinModel(ModelConfig.model_validate(MODEL), specs[:1]).eval()
    tables = [evaluate(twin, [one], "val") for one in prepared]
    for table in tables[1:]:
        np.testing.assert_allclose(table["nll"], tables[0]["nll"], rtol=1e-6)
    rates = twin.predict(session.stimulus, session=0, bin_rate=60.0)
    seen = twin([sample.clip])[0].detach().numpy()
    start = int(sample.clip.bins[0])
    np.testing.assert_allclose(rates[start : start + 4], seen[0], rtol=1e-5)


@pytest.mark.parametrize("lags", [{"history": [1, 2, 3, 4, 5]}, {"behavior": [0, 5]}])
def test_trap_28_no_signal_reaches_before_its_trial(tmp_path, lags):
    """Whichever signal reaches back farthest: what would lie before the trial is in no valid bin's view."""
    session = record(tmp_path, behavior={"x": np.arange(240.0)})
    transforms = {"x": {"source": "x", "expose_as": "behavior"}}
    config = configure(tmp_path, keys_lags={"stim": [0, 1, 2], **lags}, transforms=transforms)
    prepared = prepare_session(config)
    in_trial = np.arange(240) % 24
    np.testing.assert_array_equal(prepared.mask.all(axis=1), in_trial >= 5)
    table = clip_table([prepared], "train", length=4)
    (sample,) = table.samples(np.arange(len(table)), context=2)
    for row, offset in zip(*np.nonzero(sample.target.mask.numpy().any(axis=2)), strict=True):
        now = int(sample.clip.bins[row]) + offset
        if "history" in lags:
            before = session.responses[now - 5 : now]
            np.testing.assert_array_equal(sample.clip.history[row, offset : offset + 5], before)
        else:
            assert sample.clip.behavior[row, 2 + offset].tolist() == [now, now - 5]
    filters = {"dfs": {"ops": [{"valid_nlags": {"n_lags": 4}}]}}  # fewer than are read: covers these all the same
    fewer = prepare_session(
        config.model_copy(update={"datafilters": configure(tmp_path, datafilters=filters).datafilters})
    )
    np.testing.assert_array_equal(fewer.mask, prepared.mask)


def test_trap_30_labels_of_a_mixed_bin_are_dropped_not_averaged(tmp_path):
    """A resampled bin whose halves belong to different splits is in neither; none spans two trials."""
    labels = np.repeat(["train", "val", "test", ""], [122, 59, 58, 1])
    trial = np.repeat([0, 1, 2], [101, 64, 75])
    record(tmp_path, split=labels, trial=trial)
    prepared = prepare_session(configure(tmp_path, sampling={"source_rate": 60, "target_rate": 30}))
    last = prepared.frame
    mixed = labels[last] != labels[last - 1]
    assert mixed.any() and not prepared.mask[mixed].any()
    whole = ~mixed & (labels[last] != "")
    np.testing.assert_array_equal(np.array(SPLITS)[prepared.split[whole]], labels[last][whole])
    np.testing.assert_array_equal(trial[last], trial[last - 1])


def test_trap_31_no_global_generator_is_seeded_or_drawn_from():
    """numpy's global generator is not used at all; torch's is seeded in one place, by seed and step."""
    drawn = [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        if re.fullmatch(r"(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence)\w+", ast.unparse(node))
        or ast.unparse(node) in ("random.seed", "pl.seed_everything")
    ]
    assert not drawn
    seeds = re.compile(r"torch(\.cuda|\.default_generator)?\.manual_seed\(")
    seeded = [file for file, tree in TREES.items() if seeds.search(ast.unparse(tree))]
    assert list(map(str, seeded)) == ["training/pl_modules/multidataset_model.py"]


def test_trap_32_a_batch_is_gathered_once_a_session(tmp_path, monkeypatch):
    prepared = []
    for name in ("ada_1", "bea_1"):
        record(tmp_path, name)
        prepared.append(prepare_session(configure(tmp_path, name)))
    table = clip_table(prepared, "train", length=4)
    gathered, gather = [], clips_module.gather
    monkeypatch.setattr(
        clips_module, "gather", lambda p, starts, *args, **options: (
            gathered.append((p.name, len(starts))) or gather(p, starts, *args, **options)
        )
    )  # fmt: skip
    table.samples(np.arange(len(table)), context=2)
    assert gathered == [(p.name, int((table.locate().session == index).sum())) for index, p in enumerate(prepared)]


@pytest.mark.parametrize("selected", [False, True])
def test_trap_33_counts_follow_their_units(tmp_path, selected):
    """Every unit, in another order: selected by the pipeline, by `cids`, and never by both."""
    session = record(tmp_path)
    transforms = {"robs": {"source": "robs", "ops": [{"select_units": {"indices": "cids"}}]}} if selected else {}
    prepared = prepare_session(configure(tmp_path, cids=[9, 4, 12, 7], transforms=transforms))
    assert prepared.spec.unit_ids == (9, 4, 12, 7)
    np.testing.assert_array_equal(prepared.responses, session.responses[:, [2, 0, 3, 1]])


def test_trap_33_columns_that_are_not_those_of_the_units_are_refused(tmp_path):
    record(tmp_path)

    def prepared(*indices: int) -> Prepared:
        transforms = {"robs": {"source": "robs", "ops": [{"select_units": {"indices": list(indices)}}]}}
        return prepare_session(configure(tmp_path, cids=[9, 4], transforms=transforms))

    assert prepared(2, 0).n_units == 2
    for indices in ((0, 2), (2, 0, 1)):
        with pytest.raises(ValueError, match="other columns than those of the 2 units"):
            prepared(*indices)


def test_trap_33_a_pretrained_readout_is_not_taken_over_by_other_units(tmp_path):
    record(tmp_path)
    data = data_of(configure(tmp_path))
    trained = model_of(data)
    fit(trained, data, SafeCheckpoint(tmp_path))
    other = data_of(configure(tmp_path, cids=[7, 4, 9, 12]))
    fresh, started = model_of(other), model_of(other, pretrained_checkpoint=tmp_path / "last.ckpt")
    weight = "convnet.blocks.0.conv.weight"
    states = [model.twin.state_dict() for model in (trained, fresh, started)]
    assert torch.equal(states[2][weight], states[0][weight])
    assert torch.equal(states[2]["per_session.0.readout.features"], states[1]["per_session.0.readout.features"])


# --- code -----------------------------------------------------------------------------------------------------------


def test_trap_38_extras_are_not_imported_at_the_top():
    early = {}
    for file, tree in TREES.items():
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.split(".")[0] for node in top for alias in node.names if isinstance(node, ast.Import)}
        names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        if extras := names & {"pynwb", "h5py", "hdmf", "remfile", "wandb", "optuna"}:
            early[file] = extras
    assert not early


def test_trap_39_no_error_is_swallowed():
    """Whoever catches everything passes it on: raises it, or hands it over by name."""
    swallowed = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
                if re.search(r"\b(Base)?Exception\b", caught):
                    handed = node.name and any(isinstance(n, ast.Name) and n.id == node.name for n in ast.walk(node))
                    raised = any(isinstance(n, ast.Raise) for n in ast.walk(node))
                    if not (handed or raised) or "print" in ast.unparse(node):
                        swallowed.append(f"{file}:{node.lineno}")
    assert not swallowed
