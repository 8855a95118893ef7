"""Every shipped model and dataset config: loads, builds, takes a step, comes back from its file the same."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from neurotwin.models.spec import SessionSpec

from neurotwin.clip import Batch
from neurotwin.config import ModelConfig, TransformConfig, load_dataset_configs, load_model_config
from neurotwin.data.clips import gather, usable_runs
from neurotwin.data.prepare import Prepared, prepare
from neurotwin.data.simulate import simulate_session
from neurotwin.models.twin import TwinModel, check_run, load_twin
from training import MultiDatasetDM, MultiDatasetModel

ROOT = Path(__file__).parent.parent
MODELS = sorted([ROOT / "configs/model.yaml", *(ROOT / "experiments/model_configs").rglob("*.yaml")])
PARENTS = sorted([ROOT / "configs/datasets", *(ROOT / "experiments/dataset_configs").glob("*.yaml")])
EIGHT_SECONDS = {"backimage": 5, "gaborium": 5, "fixrsvp": 2}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("experiments/", "").replace("/", "-")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The demo sessions, in short: what NEUROTWIN_DATA names."""
    folder = tmp_path_factory.mktemp("data")
    for name, n_units in (("ada_demo1", 3), ("ada_demo2", 2), ("bea_demo1", 3), ("bea_demo2", 2)):
        session = simulate_session(name, n_units=n_units, n_trials=EIGHT_SECONDS)
        session.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def environment(data, monkeypatch):
    monkeypatch.setenv("NEUROTWIN_DATA", str(data))
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def sessions(data) -> list[Prepared]:
    parent = ROOT / "experiments/dataset_configs/backimage_120.yaml"
    return prepare(load_dataset_configs(parent, data_dir=data, max_datasets=2))


def take_a_step(model: MultiDatasetModel, data: MultiDatasetDM, folder: Path) -> Path:
    """Train for one step as a run does, and write a checkpoint."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt"


def clips(prepared: Prepared, twin: TwinModel, length: int) -> Batch:
    """The first clips of a session's training part that a window of its lags fits before."""
    starts = usable_runs(prepared, "train")[:2, 0]
    return gather(prepared, starts, starts + length, length=length, context=twin.context)


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("path", MODELS, ids=ids)
def test_a_shipped_model_takes_a_step_and_comes_back_from_its_files(path, data, sessions, tmp_path):
    loader = MultiDatasetDM(
        [session.config for session in sessions], batch_size=4, clip_len=2, steps_per_epoch=1, balance="session"
    )
    loader.setup()
    model = MultiDatasetModel(path, loader.specs, mean_counts=loader.mean_counts(), learning_rate=1e-3)
    before = {name: value.clone() for name, value in model.twin.named_parameters()}
    checkpoint = take_a_step(model, loader, tmp_path)
    changed = moved(before, model.twin)
    for part in ("frontend", "convnet", "modulator", "recurrent", "readouts.0", "readouts.1"):
        names = {name for name in before if name.startswith(f"{part}.")}
        assert not names or names & changed, f"the step left {part} as it was"
    twin = model.twin.eval()
    rates = twin([clips(sessions[0], twin, 2)])[0]
    assert rates.shape == (2, 2, 3) and (rates > 0).all() and rates.isfinite().all()
    for file in (checkpoint, twin.save(tmp_path / "twin.safetensors")):
        loaded = load_twin(file)
        assert loaded.describe() == twin.describe()
        torch.testing.assert_close(loaded([clips(sessions[0], loaded, 2)])[0], rates, rtol=0, atol=0)


@pytest.mark.parametrize("path", MODELS, ids=ids)
def test_a_clip_of_a_shipped_model_equals_its_windows(path, sessions):
    """Bin by bin; with recurrence, windows that carry the state after a warm-up of the window's length."""
    twin = TwinModel(load_model_config(path), [SessionSpec.from_prepared(session) for session in sessions]).eval()
    with torch.no_grad():
        for parameter in twin.parameters():  # away from the start, where some parts do nothing yet
            parameter.add_(0.05 * torch.randn(parameter.shape))
        twin.double()
        batch = clips(sessions[0], twin, 3)
        whole = twin([batch])[0]
        assert (whole.std(dim=1) > 0).any(), "bins differ, so that the test can fail"
        state = None
        for index in range(3):
            start = batch.bins.numpy() + index
            context = twin.context if state is None else twin.receptive_field - 1
            window = gather(sessions[0], start, start + 1, length=1, context=context)
            (rates,), state = twin.step([window], state)
            torch.testing.assert_close(rates[:, 0], whole[:, index])
        assert (state is not None) == twin.is_recurrent


def test_a_shifter_learns_in_a_run_and_predicts_from_raw_gaze(sessions, data, tmp_path):
    gaze = {"source": "eyepos", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior", "concatenate": True}
    configs = [
        session.config.model_copy(update={"transforms": session.config.transforms | {"gaze": TransformConfig(**gaze)}})
        for session in sessions
    ]
    loader = MultiDatasetDM(configs, batch_size=4, clip_len=2, steps_per_epoch=1, balance="session")
    loader.setup()
    shifter = {"type": "mlp", "params": {"source": "gaze"}}
    model = MultiDatasetModel(ModelConfig(shifter=shifter), loader.specs, learning_rate=1e-2)
    twin = load_twin(take_a_step(model, loader, tmp_path))
    shifts = {name: value for name, value in twin.named_parameters() if name.endswith("head.weight")}
    assert list(shifts) == ["shifters.0.head.weight", "shifters.1.head.weight"]
    assert all(value.any() for value in shifts.values()), "0 at the start, moved by the step"
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (30, 28, 28)).astype(np.uint8)
    raw = {"eyepos": rng.normal(size=(30, 2)), "eyevel": np.zeros((30, 2)), "pupil": np.ones(30)}
    rates = twin.predict(movie, raw, session="ada_demo1")
    raw["eyepos"] = raw["eyepos"] + np.eye(30)[:, 20:21]
    moved_bins = np.flatnonzero((twin.predict(movie, raw, session="ada_demo1") != rates).any(axis=1))
    assert moved_bins.tolist() == [20], "the gaze of a bin shifts what is read out in it"


@pytest.mark.parametrize("parent", PARENTS, ids=ids)
def test_a_shipped_dataset_is_prepared_and_trained_on(parent, tmp_path):
    configs = load_dataset_configs(parent)
    loader = MultiDatasetDM(configs, batch_size=8, clip_len=2, steps_per_epoch=1)
    loader.setup()
    assert [session.name for session in loader.sessions] == ["ada_demo1", "ada_demo2", "bea_demo1", "bea_demo2"]
    for prepared in loader.sessions:
        assert prepared.bin_rate == configs[0].sampling.target_rate
        assert {len(usable_runs(prepared, split)) > 0 for split in ("train", "val")} == {True}
        spec = SessionSpec.from_prepared(prepared)
        assert SessionSpec.from_json(spec.to_json()) == spec
    model = MultiDatasetModel(ROOT / "experiments/model_configs/resnet_concat.yaml", loader.specs)
    before = {name: value.clone() for name, value in model.twin.named_parameters()}
    take_a_step(model, loader, tmp_path)
    assert moved(before, model.twin)


@pytest.mark.parametrize("parent", [path for path in PARENTS if path.suffix], ids=ids)
def test_every_model_fits_every_dataset(parent):
    configs = load_dataset_configs(parent, max_datasets=1)
    for path in MODELS:
        check_run(load_model_config(path), configs)
