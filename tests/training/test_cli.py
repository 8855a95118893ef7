"""The training script: every flag changes what it should, and what cannot be is one line before anything is written."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml

from neurotwin.checkpoint_file import read_checkpoint, write_checkpoint
from neurotwin.data.session import Session
from training import train_ddp_multidataset as script
from training.averaging import WeightAverage
from training.callbacks import CurriculumCallback, MetricsFile, ModelLogging, TimeBudgetCallback
from training.checkpoints import SafeCheckpoint
from training.devices import choose_devices, choose_precision
from training.processes import GradientSumStrategy
from training.samplers import ContrastWeightedSampler

MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {"type": "vanilla", "params": {"channels": [3], "block_configs": [{"conv_params": {"kernel_size": 3}}]}},
    "readout": {"type": "gaussian"},
}
DATA = {"keys_lags": {"stim": "0..6"}, "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}}}
SMALL = {"--steps_per_epoch": "2", "--max_epochs": "6", "--clip_len": "8", "--accelerator": "cpu", "--logger": "csv"}


def write_session(folder: Path, name: str, *, size: int = 6, bin_rate: float = 60.0, n_bins: int = 240, **config):
    rng = np.random.default_rng(len(name))
    session = Session(
        name=name, bin_rate=bin_rate, stimulus=rng.integers(0, 256, (n_bins, size, size), dtype=np.uint8),
        responses=rng.poisson(0.5, (n_bins, 3)).astype(np.uint8), trial=np.arange(n_bins) // 30, unit_ids=[4, 7, 9],
    )  # fmt: skip
    path = session.save(folder / "data" / f"{name}.safetensors")
    (folder / "sessions").mkdir(exist_ok=True)
    settings = {"path": str(path), **DATA, **config}
    (folder / "sessions" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Three sessions of two subjects, and a model."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("ada_1", "ada_02", "bea_003"):
        write_session(folder, name)
    (folder / "parent.yaml").write_text(yaml.safe_dump({"data_dir": "nowhere", **DATA, "sessions": ["ada_1"]}))
    (folder / "ada_1.yaml").write_text("{}")
    (folder / "model.yaml").write_text(yaml.safe_dump(MODEL))
    wide = MODEL | {"convnet": {"type": "vanilla", "params": MODEL["convnet"]["params"] | {"channels": [5]}}}
    (folder / "wide.yaml").write_text(yaml.safe_dump(wide))
    return folder


def arguments_of(lab: Path, flags: dict[str, str | None], runs: Path) -> list[str]:
    paths = {"--model_config": f"{lab}/model.yaml", "--dataset_configs_path": f"{lab}/sessions"}
    flags = paths | {"--checkpoint_dir": f"{runs}"} | SMALL | flags
    return [part for pair in flags.items() for part in pair if part is not None]


@pytest.fixture
def built(lab, tmp_path, monkeypatch):
    """What the script builds from some flags, up to the call of `fit`."""

    class Stop(Exception):
        pass

    def build(flags: dict[str, str | None]) -> SimpleNamespace:
        found = SimpleNamespace()

        def fit(self, model, data, ckpt_path=None):
            found.trainer, found.model, found.data, found.checkpoint = self, model, data, ckpt_path
            raise Stop

        monkeypatch.setattr(pl.Trainer, "fit", fit)
        monkeypatch.setattr(script, "finish", lambda *_: None)
        found.arguments = script.parse_arguments(arguments_of(lab, flags, tmp_path / "runs"))
        with pytest.raises(Stop):
            script.train(found.arguments)
        found.folder = Path(found.trainer.default_root_dir)
        return found

    return build


def optimizer_of(run: SimpleNamespace) -> tuple[dict, list[float]]:
    """The optimizer's groups by name, and the factors of the learning rate at each step of the run."""
    steps = run.arguments.steps_per_epoch * run.arguments.max_epochs
    run.model._trainer = SimpleNamespace(
        max_epochs=run.arguments.max_epochs, estimated_stepping_batches=steps,
        num_training_batches=run.arguments.steps_per_epoch,
    )  # fmt: skip
    made = run.model.configure_optimizers()
    if not isinstance(made, dict):
        return {group["name"]: group for group in made.param_groups}, [1.0] * steps
    schedule = made["lr_scheduler"]["scheduler"]
    factors = []
    for _ in range(steps if hasattr(schedule, "base_lrs") else 0):
        factors.append(round(schedule.get_last_lr()[0] / schedule.base_lrs[0], 9))
        made["optimizer"].step()
        schedule.step()
    return {group["name"]: group for group in made["optimizer"].param_groups}, factors


def schedule_of(run: SimpleNamespace) -> dict:
    optimizer_of(run)
    made = run.model.configure_optimizers()
    return made["lr_scheduler"] if isinstance(made, dict) else {}


def of(run: SimpleNamespace, kind: type, name: str):
    """An attribute of a callback; None without the callback."""
    return getattr(callback(run, kind), name, None)


def callback(run: SimpleNamespace, kind: type) -> pl.Callback | None:
    return next((part for part in run.trainer.callbacks if isinstance(part, kind)), None)


def sampler(run: SimpleNamespace):
    return run.data.train_dataloader().sampler


def kernel(run: SimpleNamespace) -> torch.Tensor:
    return next(run.model.twin.frontend.parameters())


# Each flag with what it must make true, and what is false without it.
FLAGS = [
    ({"--dataset_configs_path": "{lab}/parent.yaml", "--data_dir": "{lab}/data"}, lambda r: len(r.data.sessions) == 1),
    ({"--model_config": "{lab}/wide.yaml"}, lambda r: r.model.twin.config.convnet.params.channels == (5,)),
    ({"--set": "convnet.params.channels=[7]"}, lambda r: r.model.twin.config.convnet.params.channels == (7,)),
    ({"--set": "dataset.seed=77"}, lambda r: {config.seed for config in r.data.configs} == {77}),
    ({"--max_datasets": "2"}, lambda r: len(r.data.sessions) == 2),
    ({"--batch_size": "32"}, lambda r: sampler(r).batch_size == 4),
    ({"--clip_len": "4"}, lambda r: r.data.table.length == 4 and sampler(r).batch_size == 16),
    ({"--learning_rate": "0.5"}, lambda r: optimizer_of(r)[0]["session/decay"]["lr"] == 0.5),
    ({"--core_lr_scale": "0.5"}, lambda r: optimizer_of(r)[0]["core/decay"]["lr"] == 0.5e-4),
    ({"--weight_decay": "0.5"}, lambda r: optimizer_of(r)[0]["core/decay"]["weight_decay"] == 0.5),
    ({"--optimizer": "muon"}, lambda r: "core/kernels/decay" in optimizer_of(r)[0]),
    ({"--max_epochs": "9"}, lambda r: r.trainer.max_epochs == 9),
    ({"--steps_per_epoch": "3"}, lambda r: len(r.data.train_dataloader()) == 3),
    ({"--gradient_clip_val": "0.25"}, lambda r: r.trainer.gradient_clip_val == 0.25),
    ({"--gradient_clip_val": "0"}, lambda r: r.trainer.gradient_clip_val is None),
    ({"--accumulate_grad_batches": "2"}, lambda r: r.trainer.accumulate_grad_batches == 2 == r.data.accumulate),
    ({"--lr_scheduler": "cosine"}, lambda r: optimizer_of(r)[1][6] == 0.5),
    ({"--lr_scheduler": "step"}, lambda r: optimizer_of(r)[1][4] == 0.1),
    ({"--lr_scheduler": "anneal", "--warmup_epochs": "2"},
     lambda r: optimizer_of(r)[1][1] < 0.6 < optimizer_of(r)[1][4]),
    ({"--lr_scheduler": "plateau"}, lambda r: "monitor" in schedule_of(r)),
    ({"--lr_scheduler": "cosine_warmup", "--warmup_epochs": "2"}, lambda r: optimizer_of(r)[1][0] == 0.25),
    (
        {"--lr_scheduler": "cosine_warmup_restart", "--warmup_epochs": "2", "--restart_period": "2"},
        lambda r: optimizer_of(r)[1][4] == 1 == optimizer_of(r)[1][8] and optimizer_of(r)[1][7] < 0.2,
    ),
    ({"--enable_curriculum": None}, lambda r: isinstance(sampler(r), ContrastWeightedSampler)),
    ({"--enable_curriculum": None}, lambda r: callback(r, CurriculumCallback) is not None),
    ({"--enable_curriculum": None, "--warmup_epochs": "3"}, lambda r: getattr(sampler(r), "warmup_steps", 0) == 6),
    ({"--freeze_vision": None, "--pretrained_checkpoint": "{lab}/t.st"}, lambda r: not kernel(r).requires_grad),
    (
        {"--freeze_core": None, "--pretrained_checkpoint": "{lab}/t.st"},
        lambda r: all(name.startswith("session/") for name in optimizer_of(r)[0]),
    ),
    ({"--pretrained_checkpoint": "{lab}/t.st"}, lambda r: bool((kernel(r) == 0.125).all())),
    ({"--compile": None}, lambda r: r.model.compile_core),
    ({"--dset_dtype": "float32"}, lambda r: r.data.sessions[0].source.dtype == np.float32),
    ({"--dset_dtype": "bfloat16"}, lambda r: r.data.sessions[0].source.dtype == np.float16),
    ({"--num_gpus": "2"}, lambda r: r.trainer.world_size == 2 and isinstance(r.trainer.strategy, GradientSumStrategy)),
    ({"--num_workers": "3"}, lambda r: r.data.train_dataloader().threads == 3),
    ({"--experiment_name": "other"}, lambda r: r.folder.name == "other"),
    ({"--checkpoint_dir": "{lab}/runs"}, lambda r: r.folder.parent.parent.name.startswith("lab")),
    ({"--ckpt_path": "{lab}/last.ckpt"}, lambda r: r.checkpoint is not None and r.checkpoint.endswith("last.ckpt")),
    ({"--ema": "0.75"}, lambda r: of(r, WeightAverage, "decay") == 0.75),
    ({"--early_stopping_patience": "3"}, lambda r: of(r, pl.callbacks.EarlyStopping, "patience") == 3),
    (
        {"--early_stopping_patience": "3", "--early_stopping_min_delta": "0.5"},
        lambda r: of(r, pl.callbacks.EarlyStopping, "min_delta") == 0.5,
    ),
    ({"--limit_val_batches": "0.5"}, lambda r: sum(len(b.clip.bins) for b in r.data.val_dataloader()) == 3),
    ({"--time_budget_minutes": "2"}, lambda r: of(r, TimeBudgetCallback, "budget") == 120),
    ({"--enable_logging": None, "--fast_log_interval": "3"}, lambda r: of(r, ModelLogging, "fast_interval") == 3),
    ({"--enable_logging": None, "--slow_log_interval": "3"}, lambda r: of(r, ModelLogging, "slow_interval") == 3),
    ({"--enable_logging": None, "--log_dataset_idx": "2"}, lambda r: of(r, ModelLogging, "session") == 2),
    ({"--seed": "3"}, lambda r: r.model.seed == 3 == sampler(r).seed),
    ({"--logger": "tensorboard"}, lambda r: r.trainer.loggers != [] and callback(r, MetricsFile) is None),
    ({"--balance": "session"}, lambda r: len(sampler(r)._bounds) == 4),
    ({"--balance": "subject"}, lambda r: len(sampler(r)._bounds) == 3),
    ({"--on_nan": "skip"}, lambda r: r.model.on_nan == "skip"),
    ({"--teacher": "{lab}/t.st"}, lambda r: r.data.teacher is not None),
    ({"--teacher": "{lab}/t.st", "--teacher_weight": "0.25"}, lambda r: r.model.teacher_weight == 0.25),
]  # fmt: skip
# Flags whose effect needs another machine or another package; tested by themselves below.
ELSEWHERE = {
    "--accelerator", "--find_lr", "--gpu_ids", "--num_nodes", "--precision", "--project_name", "--resume",
    "--teacher_types",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(lab):
    """What the required flags alone build."""
    with pytest.MonkeyPatch.context() as patch:
        return built.__wrapped__(lab, lab / "plain", patch)({})


@pytest.mark.parametrize(
    ("flags", "holds"), FLAGS, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_a_flag_does_what_it_says(lab, built, plain, flags, holds):
    if any("{lab}/t.st" in str(value) for value in flags.values()) or "--ckpt_path" in flags:
        twin = built({}).model.twin
        torch.nn.init.constant_(next(twin.frontend.parameters()), 0.125)
        twin.save(lab / "t.st")
        loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
        content = {"twin": json.dumps(twin.describe()), "loops": loops, "state_dict": {}, "optimizer_states": []}
        write_checkpoint(lab / "last.ckpt", content)
    flags = {name: value and value.replace("{lab}", str(lab)) for name, value in flags.items()}
    assert holds(built(flags))
    assert not holds(plain)


def test_every_flag_of_the_dialect_is_in_the_table(capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    assert known == {name for flags, _ in FLAGS for name in flags} | ELSEWHERE


def test_defaults_are_those_of_the_dialect():
    given = vars(script.parse_arguments(["--model_config", "m", "--dataset_configs_path", "d"]))
    expected = {
        "max_datasets": 30, "batch_size": 64, "learning_rate": 1e-4, "core_lr_scale": 1.0, "weight_decay": 1e-5,
        "max_epochs": 100, "gradient_clip_val": 1.0, "accumulate_grad_batches": 1, "warmup_epochs": 5,
        "steps_per_epoch": 1000, "project_name": "multidataset", "checkpoint_dir": "./checkpoints", "clip_len": 32,
        "early_stopping_min_delta": 0.0, "limit_val_batches": 1.0, "fast_log_interval": 5, "slow_log_interval": 10,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


def test_devices_and_precision(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_devices("auto", None, None) == ("gpu", 4)
    assert choose_devices("auto", 2, None) == ("gpu", 2)
    assert choose_devices("auto", None, [0, 2]) == ("gpu", [0, 2])
    assert choose_devices("cpu", None, None) == ("cpu", 1)
    for flags, fault in (((5, None), "has 4 GPUs"), ((None, [0, 7]), r"\[7\]"), ((1, [0, 2]), "disagree")):
        with pytest.raises(ValueError, match=fault):
            choose_devices("gpu", *flags)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="without a GPU"):
        choose_devices("auto", None, [0])
    assert [choose_precision(p, "gpu") for p in ("bf16", "16", "32")] == ["bf16-mixed", "16-mixed", "32-true"]
    assert choose_precision("bf16", "cpu") == "32-true"
    assert "falls to 32" in caplog.text


@pytest.mark.parametrize("instructions", ["amx_tile", "avx512_bf16", ""])
def test_a_cpu_computes_in_bf16_where_the_flag_is_given_and_its_instructions_do(lab, monkeypatch, caplog, instructions):
    caplog.set_level(logging.INFO)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == instructions)
    launch = script.read_launch("cpu")

    def chosen(*flags):
        caplog.clear()
        arguments = script.parse_arguments(["--model_config", "m", "--dataset_configs_path", "d", *flags])
        return script.trainer_settings(arguments, launch)["precision"]

    assert chosen() == "32-true" and "precision bf16-mixed falls to 32" in caplog.text
    assert ("with --precision bf16-mixed" in caplog.text) == bool(instructions)
    assert chosen("--precision", "32") == "32-true" and not caplog.text
    assert chosen("--precision", "16-mixed") == "32-true" and "falls to 32" in caplog.text
    for given in ("bf16", "bf16-mixed"):
        assert chosen("--precision", given) == ("bf16-mixed" if instructions else "32-true")
        assert ("falls to 32" in caplog.text) == (not instructions)


def test_wandb_gets_project_and_name(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("training.flags.find_spec", lambda name: True)
    monkeypatch.setattr(script, "WandbLogger", lambda **settings: settings)
    flags = {"--logger": "wandb", "--project_name": "lab", "--experiment_name": "run"}
    arguments = script.parse_arguments(arguments_of(lab, flags, tmp_path))
    assert script.make_loggers(arguments, tmp_path, "run") == [{"name": "run", "project": "lab", "save_dir": tmp_path}]


# --- what cannot be -------------------------------------------------------------------------------------------------


def bad(**config):
    """A session whose config says something that cannot be, beside two sound ones."""
    return lambda folder: write_session(folder, "bad_01", **config)


BAD = [
    ("no model", {"--model_config": "nowhere.yaml"}, None, "nowhere.yaml"),
    ("no datasets", {"--dataset_configs_path": "nowhere"}, None, "nowhere"),
    ("misspelt model key", {}, lambda f: (f / "model.yaml").write_text("convnett: {type: none}"), "did you mean"),
    ("misspelt data key", {}, bad(keys_lag={"stim": 3}), "did you mean"),
    ("broken yaml", {}, lambda f: (f / "model.yaml").write_text("a: ["), "model.yaml"),
    ("misspelt set key", {"--set": "convnet.prams.channels=[7]"}, None, "--set model.convnet.prams.channels: .*did"),
    ("absent units", {}, bad(cids=[4, 5]), r"cids \[5\]"),
    ("absent data", {}, bad(path="gone.safetensors"), "gone.safetensors"),
    ("bin rates", {}, bad(bin_rate=120.0), "120 bins a second"),
    ("image sizes", {}, bad(size=9), "9"),
    ("no valid bins", {}, bad(datafilters={"dfs": {"ops": [{"valid_nlags": {"n_lags": 40}}]}}), "no valid bin"),
    ("empty split", {}, bad(train_val_split=0.999), "val split is empty"),
    ("one trial", {}, bad(n_bins=29), "'bad_01'.*split is empty"),
    ("lags", {}, bad(keys_lags={"stim": "0..1"}), "lags"),
    ("session index", {"--log_dataset_idx": "7"}, None, "there are 2 sessions"),
    ("GPU", {"--gpu_ids": "0"}, None, "without a GPU"),
    ("checkpoint", {"--ckpt_path": "gone.ckpt"}, None, "gone.ckpt: no such file"),
    ("frozen", {"--freeze_vision": None}, None, "--pretrained_checkpoint"),
    ("warm-up", {"--lr_scheduler": "cosine_warmup", "--warmup_epochs": "6"}, None, "less than --max_epochs 6"),
    ("logger", {"--logger": "csv,mlflow"}, None, "mlflow"),
    ("number", {"--batch_size": "0"}, None, "--batch_size: 0: must be at least 1"),
    ("text", {"--learning_rate": "fast"}, None, "--learning_rate"),
    ("unknown flag", {"--bach_size": "3"}, None, "--bach_size"),
    ("huge accumulation", {"--accumulate_grad_batches": "1000000"}, None, "at most|--steps_per_epoch 2 batches"),
    ("many nodes", {"--num_nodes": "60000"}, None, "torchrun or srun"),
    ("a folder without checkpoints", {"--pretrained_checkpoint": "."}, None, "a folder without checkpoints"),
    ("two starts", {"--resume": "auto", "--ckpt_path": "x"}, None, "one of them"),
]


@pytest.mark.parametrize(("flags", "change", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_cannot_be_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, flags, change, message):
    monkeypatch.chdir(tmp_path)
    for name in ("ada_1", "ada_02"):
        write_session(tmp_path, name)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL))
    if change:
        change(tmp_path)
    try:
        code = script.main(arguments_of(tmp_path, flags, tmp_path / "runs"))
    except SystemExit as stop:
        code = stop.code
    errors = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert code == 2
    assert len(errors) == 1 and errors[0].startswith("error: ") and re.search(message, errors[0]), errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags", [{}, {"--on_nan": "skip"}])
def test_a_prediction_in_validation_that_is_not_finite_is_one_line_and_ends_with_1(tmp_path, capsys, flags):
    """Behaviour that is finite and enormous in one bin of the validation part, so that sums over it are infinite."""
    rng, split = np.random.default_rng(0), np.repeat(["train"] * 6 + ["val"] * 2, 30)
    behavior = rng.normal(size=(240, 8)).astype(np.float32)
    behavior[200] = 3e38
    session = Session(
        name="ada_1", bin_rate=60.0, stimulus=rng.integers(0, 256, (240, 6, 6), dtype=np.uint8),
        responses=rng.poisson(0.5, (240, 3)), trial=np.arange(240) // 30 + 7, behavior={"run": behavior}, split=split,
    )  # fmt: skip
    transforms = DATA["transforms"] | {"run": {"source": "run", "expose_as": "behavior"}}
    (tmp_path / "sessions").mkdir()
    config = DATA | {"transforms": transforms, "path": str(session.save(tmp_path / "ada_1.safetensors"))}
    (tmp_path / "sessions" / "ada_1.yaml").write_text(yaml.safe_dump(config))
    modulator = {"type": "concat", "params": {"encoder_params": {"dims": [16, 4], "activation": "relu"}}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL | {"modulator": modulator}))
    assert script.main(arguments_of(tmp_path, flags, tmp_path / "runs")) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(errors) == 1
    assert re.match(
        r"error: in validation, a prediction of session ada_1 is not finite: trial 13, bin 200; ", errors[0]
    )


# --- a run's folder -------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_record_and_another_goes_beside_it(lab, tmp_path, capsys):
    argv = arguments_of(lab, {"--max_epochs": "1", "--seed": "5"}, tmp_path)
    assert script.main(argv) == 0 == script.main(argv)
    assert "holds a run; this one goes to" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-2"]
    folder = tmp_path / "model-2"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"run.json", "model.yaml", "datasets.yaml", "metrics.csv", "units.csv", "checkpoints"}
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 5 == record["flags"]["seed"] and record["epochs"] == 1 and record["steps"] == 2
    assert set(record["sessions"]) == {"ada_1", "ada_02", "bea_003"}
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert set(record["environment"]) >= {"git", "command", "python"}
    assert (tmp_path / "model" / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


def test_resume_auto(lab, tmp_path, capsys):
    flags = {"--max_epochs": "2", "--resume": "auto"}
    whole = tmp_path / "whole" / "model"
    assert script.main(arguments_of(lab, flags, whole.parent)) == 0
    folder = tmp_path / "runs" / "model"

    def run(**changes):
        code = script.main(arguments_of(lab, flags | changes, folder.parent))
        return code, capsys.readouterr().err

    assert run(**{"--max_epochs": "1"})[0] == 0
    code, log = run()
    assert code == 0 and "going on from" in log
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert (folder / "units.csv").read_bytes() == (whole / "units.csv").read_bytes()
    (folder / "units.csv").unlink()
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run()[0] == 0  # finished: evaluated again, not trained
    assert (folder / "units.csv").read_bytes() == (whole / "units.csv").read_bytes()
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    for changes, difference in (
        (
            {"--model_config": f"{lab}/wide.yaml", "--experiment_name": "model"},
            r"model.convnet.params.channels was \[3\]",
        ),
        ({"--max_datasets": "2"}, "sessions.bea_003 was"),
        ({"--max_epochs": "1"}, "has trained 2 epochs, --max_epochs is less"),
        ({"--batch_size": "32"}, "global_batch_size was 64 and is 32"),
        ({"--learning_rate": "1"}, "--learning_rate was 0.0001 and is 1.0"),
    ):
        code, log = run(**changes)
        assert code == 2 and re.search(difference, log) and "Traceback" not in log
    with open(folder / "checkpoints" / "last.ckpt", "r+b") as file:
        file.truncate(1000)
    code, log = run()
    assert code == 0 and re.search(r"last.ckpt: torn.*going on from .*last.previous.ckpt", log)
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_run_folders_stand_for_their_checkpoints(lab, tmp_path, capsys):
    """A model without a config of its own starts from the best one, and a run goes on from the last one."""
    assert script.main(arguments_of(lab, {"--max_epochs": "1"}, tmp_path)) == 0
    run = tmp_path / "model"
    for path in (run, run / "checkpoints", run / "checkpoints" / "best.ckpt"):
        argv = arguments_of(lab, {"--max_epochs": "1", "--freeze_core": None}, tmp_path)
        model = argv.index("--model_config")
        argv = [*argv[:model], *argv[model + 2 :], "--pretrained_checkpoint", str(path)]
        assert script.main(argv) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model-tuned", "model-tuned-2", "model-tuned-3"}
    old, new = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("model", "model-tuned"))
    kernel = "twin.frontend.weight"
    assert torch.equal(new["state_dict"][kernel], read_checkpoint(run / "checkpoints/best.ckpt")["state_dict"][kernel])
    assert json.loads(new["twin"])["config"] == json.loads(old["twin"])["config"]
    capsys.readouterr()
    assert script.main(arguments_of(lab, {"--max_epochs": "2", "--ckpt_path": str(run)}, tmp_path)) == 0
    assert f"going on from {run / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().err
    assert [row.split(",")[0] for row in (tmp_path / "model-2/metrics.csv").read_text().splitlines()[1:]] == ["1", "2"]


def test_a_damaged_directory_of_an_archive_is_noticed_and_the_one_before_used(lab, tmp_path, capsys):
    flags = {"--max_epochs": "2", "--resume": "auto"}
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    last = tmp_path / "model" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[content.index(b"PK\1\2") + 30] ^= 4  # the length of a field that zip's checksums leave out
    last.write_bytes(content)
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    assert re.search(r"last.ckpt: altered.*going on from .*last.previous.ckpt", capsys.readouterr().err)
    argv = arguments_of(lab, flags | {"--pretrained_checkpoint": str(last)}, tmp_path / "other")
    content[40] ^= 1
    last.write_bytes(content)
    assert script.main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "last.ckpt: altered: it does not match its checksum" in line


def test_the_global_batch_is_what_a_step_takes(lab, tmp_path, capsys):
    flags = {"--max_epochs": "1", "--batch_size": "20", "--accumulate_grad_batches": "2", "--resume": "auto"}
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    assert "a step takes 2 clips x 8 bins x 1 process x 2 batches = 32 predicted bins" in capsys.readouterr().err
    record = json.loads((tmp_path / "model" / "run.json").read_text())
    assert record["global_batch_size"] == 32 and record["steps"] == 1
    assert record["step"] == {"clips": 2, "clip_len": 8, "processes": 1, "batches": 2}
    flags["--max_epochs"] = "2"
    assert script.main(arguments_of(lab, flags | {"--batch_size": "24"}, tmp_path)) == 2
    assert "global_batch_size was 32 and is 48" in capsys.readouterr().err
    assert script.main(arguments_of(lab, flags | {"--batch_size": "23"}, tmp_path)) == 0  # the same clips


def test_flags_without_effect_are_said(lab, tmp_path, capsys):
    flags = {"--max_epochs": "1", "--restart_period": "2", "--slow_log_interval": "3"}
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    found = re.findall(r"--(\w+) has no effect: it needs (.+)", capsys.readouterr().err)
    expected = [
        ("restart_period", "--lr_scheduler cosine_warmup_restart"), ("slow_log_interval", "--enable_logging"),
    ]  # fmt: skip
    assert found == expected


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: not enough memory; take a smaller --batch_size"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried\n..."), "error: not enough memory"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1\nmore"), "error: another process of the run is gone"),
        (ValueError("one\n\ttwo"), "error: one two"),
    ],
)
def test_ends_that_are_no_fault_of_the_program_are_one_line(monkeypatch, capsys, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr(script, "train", fail)
    assert script.main(["--model_config", "m", "--dataset_configs_path", "d"]) == (2 if "two" in line else 1)
    text = capsys.readouterr().err
    assert text.startswith(line) and text.count("\n") == 1
    monkeypatch.setattr(error, "args", ("a fault of the program",))
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="a fault"):
            script.main(["--model_config", "m", "--dataset_configs_path", "d"])


def test_a_process_that_is_gone_is_said_once_on_each_machine_also_where_a_signal_follows(monkeypatch, capsys):
    def fail(*_):
        try:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
        except RuntimeError:
            raise script.Interrupted(15)  # noqa: B904 - as a handler of signals raises

    monkeypatch.setattr(script, "train", fail)
    monkeypatch.setattr(script.rank_zero_only, "rank", 2)
    for local_rank, said in (("0", "process 2: error: another process of the run is gone"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert script.main(["--model_config", "m", "--dataset_configs_path", "d"]) == 1
        text = capsys.readouterr().err
        assert text.startswith(said) and text.count("\n") == bool(said)


def test_a_run_that_was_never_saved_starts_anew_in_its_folder(lab, tmp_path):
    (tmp_path / "model" / "checkpoints").mkdir(parents=True)
    assert script.main(arguments_of(lab, {"--max_epochs": "1", "--resume": "auto"}, tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_checkpoints_are_saved_by_time_within_an_epoch(built):
    assert callback(built({}), SafeCheckpoint).every_n_minutes == 10
