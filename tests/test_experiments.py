"""Every shipped model and dataset config: loads, builds, takes a step, comes back from its file the same."""

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from neurotwin.clip import Clip
from neurotwin.config import ModelConfig, TransformConfig, load_dataset_configs, load_model_config
from neurotwin.data.clips import gather, usable_runs
from neurotwin.data.prepare import Prepared, prepare
from neurotwin.data.simulate import simulate_session
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel, check_run, load_twin
from neurotwin.models.parameters import dialect_name
from training import MultiDatasetDM, MultiDatasetModel

ROOT = Path(__file__).parent.parent
MODELS = sorted([ROOT / "configs/model.yaml", *(ROOT / "experiments/model_configs").rglob("*.yaml")])
PARENTS = sorted([ROOT / "configs/datasets", *(ROOT / "experiments/dataset_configs").glob("*.yaml")])
EIGHT_SECONDS = {"backimage": 5, "gaborium": 5, "fixrsvp": 2}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


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


def first_clips(prepared: Prepared, twin: TwinModel, length: int) -> Clip:
    """The first clips of a session's training part that a window of its lags fits before."""
    starts = usable_runs(prepared, "train")[:2, 0]
    return gather(prepared, starts, starts + length, length=length, context=twin.context).clip


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """Parameters that are not what they were, by their names in config files."""
    return {dialect_name(name) for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def faults_of_a_step(path: Path, loader: MultiDatasetDM, folder: Path) -> Iterator[str]:
    """What is wrong with a shipped model after one step of training, and after it comes back from its files."""
    model = MultiDatasetModel(path, loader.specs, statistics=loader.statistics(), learning_rate=1e-3)
    before = {name: value.clone() for name, value in model.twin.named_parameters()}
    checkpoint = take_a_step(model, loader, folder)
    changed, known = moved(before, model.twin), {dialect_name(name) for name in before}
    for part in ("frontend", "convnet", "modulator", "recurrent", "readouts.0", "readouts.1"):
        names = {name for name in known if name.startswith(f"{part}.")}
        if names and not names & changed:
            yield f"the step left {part} as it was"
    twin, prepared = model.twin.eval(), loader.sessions[0]
    rates = twin([first_clips(prepared, twin, 2)])[0]
    if rates.shape != (2, 2, 3) or not (rates > 0).all() or not rates.isfinite().all():
        yield f"rates {rates}"
    for file in (checkpoint, twin.save(folder / "twin.safetensors")):
        loaded = load_twin(file)
        if loaded.describe() != twin.describe():
            yield f"{file.name} describes another model"
        if not torch.equal(loaded([first_clips(prepared, loaded, 2)])[0], rates):
            yield f"{file.name} gives other rates"


def test_every_shipped_model_takes_a_step_and_comes_back_from_its_files(sessions, tmp_path):
    loader = MultiDatasetDM(
        [session.spec.config for session in sessions], batch_size=4, clip_len=2, steps_per_epoch=1, balance="session"
    )
    loader.setup()
    faults = []
    for number, path in enumerate(MODELS):
        folder = tmp_path / str(number)
        folder.mkdir()
        loader.sampler = None
        faults += [f"{label(path)}: {fault}" for fault in faults_of_a_step(path, loader, folder)]
    assert not faults


def unlike_its_windows(path: Path, sessions: list[Prepared]) -> bool:
    """Whether a clip differs from its bins one by one; with recurrence, these carry the state after a warm-up."""
    twin = TwinModel(load_model_config(path), [session.spec for session in sessions]).eval()
    with torch.no_grad():
        for parameter in twin.parameters():  # away from the start, where some parts do nothing yet
            parameter.add_(0.05 * torch.randn(parameter.shape))
        twin.double()
        clip = first_clips(sessions[0], twin, 3)
        whole = twin([clip])[0]
        state, alike = None, (whole.std(dim=1) > 0).any()  # bins differ, so that the test can fail
        for index in range(3):
            start = clip.bins.numpy() + index
            context = twin.context if state is None else twin.receptive_field - 1
            window = gather(sessions[0], start, start + 1, length=1, context=context).clip
            (rates,), state = twin.step([window], state)
            alike = alike and torch.allclose(rates[:, 0], whole[:, index], rtol=1e-7, atol=1e-7)
        return not alike or (state is not None) != twin.is_recurrent


def test_a_clip_of_every_shipped_model_equals_its_windows(sessions):
    assert not [label(path) for path in MODELS if unlike_its_windows(path, sessions)]


def test_a_shifter_learns_in_a_run_and_predicts_from_raw_gaze(sessions, data, tmp_path):
    gaze = {"source": "eyepos", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior", "concatenate": True}
    configs = [
        config.model_copy(update={"transforms": config.transforms | {"gaze": TransformConfig(**gaze)}})
        for config in (session.spec.config for session in sessions)
    ]
    loader = MultiDatasetDM(configs, batch_size=4, clip_len=2, steps_per_epoch=1, balance="session")
    loader.setup()
    shifter = {"type": "mlp", "params": {"source": "gaze"}}
    model = MultiDatasetModel(ModelConfig(shifter=shifter), loader.specs, learning_rate=1e-2)
    twin = load_twin(take_a_step(model, loader, tmp_path))
    shifts = {name: value for name, value in twin.named_parameters() if name.endswith("head.weight")}
    assert [dialect_name(name) for name in shifts] == ["shifters.0.head.weight", "shifters.1.head.weight"]
    assert all(value.any() for value in shifts.values()), "0 at the start, moved by the step"
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (30, 28, 28)).astype(np.uint8)
    raw = {"eyepos": rng.normal(size=(30, 2)), "eyevel": np.zeros((30, 2)), "pupil": np.ones(30)}
    rates = twin.predict(movie, raw, session="ada_demo1", bin_rate=120.0)
    raw["eyepos"] = raw["eyepos"] + np.eye(30)[:, 20:21]
    moved_bins = np.flatnonzero((twin.predict(movie, raw, session="ada_demo1", bin_rate=120.0) != rates).any(axis=1))
    assert moved_bins.tolist() == [20], "the gaze of a bin shifts what is read out in it"


def faults_of_a_dataset(parent: Path, folder: Path) -> Iterator[str]:
    """What is wrong with a shipped dataset as it is prepared, and after a step on it."""
    configs = load_dataset_configs(parent)
    loader = MultiDatasetDM(configs, batch_size=8, clip_len=2, steps_per_epoch=1)
    loader.setup()
    if [session.name for session in loader.sessions] != ["ada_demo1", "ada_demo2", "bea_demo1", "bea_demo2"]:
        yield "other sessions"
    for prepared in loader.sessions:
        if prepared.spec.bin_rate != configs[0].sampling.target_rate:
            yield f"{prepared.name}: {prepared.spec.bin_rate} bins a second"
        for split in ("train", "val"):
            if not len(usable_runs(prepared, split)):
                yield f"{prepared.name}: nothing to use in {split}"
        if SessionSpec.from_json(prepared.spec.to_json()) != prepared.spec:
            yield f"{prepared.name}: its spec does not come back from JSON"
    model = MultiDatasetModel(ROOT / "experiments/model_configs/resnet.yaml", loader.specs)
    before = {name: value.clone() for name, value in model.twin.named_parameters()}
    take_a_step(model, loader, folder)
    if not moved(before, model.twin):
        yield "a step changes nothing"


def test_every_shipped_dataset_is_prepared_and_trained_on(tmp_path):
    faults = [f"{label(parent)}: {fault}" for parent in PARENTS for fault in faults_of_a_dataset(parent, tmp_path)]
    assert not faults


def test_every_model_fits_every_dataset():
    refused = []
    for parent in (path for path in PARENTS if path.suffix):
        configs = load_dataset_configs(parent, max_datasets=1)
        for path in MODELS:
            try:
                check_run(load_model_config(path), configs)
            except ValueError as error:
                refused.append(f"{label(path)} on {label(parent)}: {error}")
    assert not refused
