"""Sharing: what is pushed is what is pulled, a revision never changes, and a twin that changed is found out."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from neurotwin import SessionSpec, TwinModel, load_twin
from neurotwin.checkpoint_file import CheckpointError
from neurotwin.cli import main
from neurotwin.config import ModelConfig
from neurotwin.data.session import Session, SessionError
from neurotwin.metrics.table import Table
from neurotwin.models.storage import READERS
from neurotwin.sharing import SharingError, golden_predictions, model_card, pull, push, read_bundle, verify
from neurotwin.sharing.card import bootstrap_interval
from neurotwin.tensorfile import load_arrays, save_arrays

ROOT = Path(__file__).parents[3]
FORMATS = ROOT / "tests/data/formats"
ZOO = ROOT / "zoo"


def twin_of(seed: int = 0, **changes) -> TwinModel:
    config = ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 4}}, **changes)
    specs = [
        SessionSpec(name=name, subject="ada", unit_ids=ids, frame_shape=(1, 8, 7), bin_rate=60.0, n_lags=8, **more)
        for name, ids, more in (("ada_1", (3, 8), {}), ("ada_2", ("a", "b", "c"), {}))
    ]
    return TwinModel(config, specs, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return twin_of().save(tmp_path / "model.safetensors")


@pytest.fixture
def store(tmp_path: Path, saved: Path) -> Path:
    push(saved, "demo@v1", tmp_path / "store")
    return tmp_path / "store"


def test_what_is_pulled_predicts_what_was_pushed(store: Path, saved: Path, tmp_path: Path) -> None:
    pinned, folder = pull("demo", store, tmp_path / "out")
    assert pinned == "demo@v1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "golden.safetensors", "manifest.json", "twin.safetensors"
    ]  # fmt: skip
    movie = np.random.default_rng(0).integers(0, 256, (20, 8, 7)).astype(np.uint8)
    for session in ("ada_1", "ada_2"):
        rates = [load_twin(p).predict(movie, session=session, bin_rate=60.0) for p in (saved, folder)]
        np.testing.assert_array_equal(*rates)
    assert not list(store.rglob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_a_revision_never_changes(store: Path, saved: Path, tmp_path: Path) -> None:
    assert push(saved, "demo@v1", store) == "demo@v1"  # the same content
    other = twin_of(1).save(tmp_path / "other.safetensors")
    before = read_bundle(store / "demo/v1")
    with pytest.raises(SharingError, match="never changed"):
        push(other, "demo@v1", store)
    assert read_bundle(store / "demo/v1") == before
    pinned = push(other, "demo", store)
    assert pinned == f"demo@{read_bundle(store / 'demo' / pinned.split('@')[1])[:12]}"
    assert pull("demo@latest", store, tmp_path / "a")[0] == pinned
    assert pull("demo@v1", store, tmp_path / "b")[0] == "demo@v1"


@pytest.mark.parametrize("file", ["twin.safetensors", "golden.safetensors", "README.md", "manifest.json"])
def test_an_altered_file_is_not_pulled(store: Path, tmp_path: Path, file: str) -> None:
    path = store / "demo/v1" / file
    content = bytearray(path.read_bytes())
    place = content.index(b'"content": "') + 12 if file == "manifest.json" else len(content) - 3
    content[place] = ord("1") if content[place] != ord("1") else ord("2")
    path.write_bytes(content)
    with pytest.raises(SharingError, match="checksum"):
        pull("demo@v1", store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_refused_unread(store: Path, tmp_path: Path) -> None:
    path = store / "demo/v1/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["twin.ckpt"] = "0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(SharingError, match=r"twin\.ckpt"):
        pull("demo@v1", store, tmp_path / "out")


@pytest.mark.parametrize("name", ["../demo", "demo@../v1", "", "a b", "demo@", ".hidden"])
def test_names_that_are_none(store: Path, saved: Path, name: str) -> None:
    for attempt in (lambda: pull(name, store), lambda: push(saved, name, store)):
        with pytest.raises(SharingError, match="NAME@REVISION"):
            attempt()


def test_what_is_absent_is_named(store: Path) -> None:
    with pytest.raises(SharingError, match="it has v1"):
        pull("demo@v2", store)
    with pytest.raises(SharingError, match="it has demo"):
        pull("other", store)


def test_pull_leaves_another_folder_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(SharingError, match="holds no twin"):
        pull("demo@v1", store, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_verify_names_the_unit_that_changed(store: Path) -> None:
    folder = store / "demo/v1"
    assert verify(folder).same
    golden, metadata = load_arrays(folder / "golden.safetensors")
    arrays = {name: array.copy() for name, array in golden.items()}
    arrays["rates.ada_2"][5, 1] += 0.01
    metadata.pop("digest")
    save_arrays(folder / "golden.safetensors", arrays, metadata)
    verdict = verify(folder)
    assert not verdict.same and (verdict.session, verdict.unit) == ("ada_2", "b")
    assert verdict.difference == pytest.approx(0.01 / max(1, arrays["rates.ada_2"][5, 1]), rel=1e-4)
    assert verdict.count == 32 * 5
    assert verify(folder, tolerance=0.02).same
    arrays["rates.ada_1"][0, 0] = np.nan
    save_arrays(folder / "golden.safetensors", arrays, metadata)
    assert verify(folder, tolerance=1e9).session == "ada_1"
    assert not verify(folder, tolerance=1e9).same


def test_golden_predictions_depend_on_the_stimulus_and_the_seed() -> None:
    twin = twin_of()
    first, again, other = (golden_predictions(twin, seed)["rates"]["ada_1"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (32, 2) and np.isfinite(first).all() and first.std(axis=0).min() > 0
    assert np.abs(first - other).max() > 0


def test_commands(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], handlers: None) -> None:
    store, out = str(tmp_path / "s"), tmp_path / "out"
    assert main(["push", str(saved), "demo", "--to", store]) == 0
    pinned = capsys.readouterr().out.strip()
    assert main(["pull", "demo", "--from", store, "--output", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [pinned, str(out)]
    assert main(["verify", pinned, "--from", store]) == 0
    assert main(["verify", str(out / "twin.safetensors")]) == 0
    twin_of(1).save(out / "twin.safetensors")
    assert main(["verify", str(out)]) == 1
    assert "no longer" in capsys.readouterr().out
    assert main(["verify", str(saved)]) == 2
    assert main(["card", str(saved), "--output", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text() == model_card(saved)


def test_the_card_says_what_is_known_and_no_more(saved: Path) -> None:
    card = model_card(saved)
    assert "Unknown: no table of units" in card and "Licence: unknown" in card and "model-index" not in card
    figures = {"bins": np.ones(2, int), "bps": np.array([0.2, 0.4])}
    Table.of_session("ada_1", "ada", [3, 8], "poisson", figures).write(saved.with_suffix(".val.csv"))
    front, body = model_card(saved).split("---\n")[1:3]
    content = yaml.safe_load(front)
    assert content["model-index"][0]["results"][0]["metrics"] == [{"type": "bps", "value": 0.3}]
    assert "license" not in content and "| BPS | 0.300 | 0.200 to 0.400 | 0.300 | 2 | 0 |" in body


def test_bootstrap_intervals_are_those_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 400)
    table = Table.of_session("ada_1", "ada", np.arange(400), "poisson", {"bins": np.ones(400), "bps": values})
    mean, low, high = bootstrap_interval(table, "bps")
    error = values.std() / np.sqrt(400)
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose([low, high], [mean - 1.96 * error, mean + 1.96 * error], atol=0.2 * error)


def test_where_recordings_lay_is_not_passed_on(tmp_path: Path) -> None:
    twin = load_twin(FORMATS / "twin-4.safetensors")
    config = twin.sessions[0].config.model_copy(update={"path": "/secret/place/ada.safetensors"})
    twin.sessions = (SessionSpec(**{**vars(twin.sessions[0]), "config": config}),)
    path = twin.save(tmp_path / "t.safetensors")
    assert b"secret" in path.read_bytes()
    push(path, "t@1", tmp_path / "store")
    assert all(b"secret" not in p.read_bytes() for p in (tmp_path / "store/t/1").iterdir())
    assert list(load_twin(tmp_path / "store/t/1").pictures) == list(twin.pictures) == ["ada_0501", "gone_1"]


class Hub:
    """A stand-in for `huggingface_hub.HfApi`: a folder a commit, and tags."""

    def __init__(self, root: Path) -> None:
        self.root, self.tags, self.head = root, {}, ""

    def create_repo(self, repo_id, *, exist_ok):
        assert exist_ok and "/" in repo_id

    def list_repo_refs(self, repo_id):
        return SimpleNamespace(tags=[SimpleNamespace(name=name) for name in self.tags])

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
        self.head = f"commit{len(list(self.root.iterdir()))}"
        shutil.copytree(folder_path, self.root / self.head)
        return SimpleNamespace(oid=self.head)

    def create_tag(self, repo_id, *, tag, revision):
        self.tags[tag] = revision

    def repo_info(self, repo_id):
        return SimpleNamespace(sha=self.head)

    def snapshot_download(self, *, repo_id, revision, local_dir, allow_patterns):
        folder = self.root / self.tags.get(revision, revision)
        for name in allow_patterns:
            shutil.copy(folder / name, local_dir)


def test_the_hub(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    assert push(saved, "lab/demo@v1", "hub", api=hub) == "lab/demo@v1"
    with pytest.raises(SharingError, match="never changed"):
        push(saved, "lab/demo@v1", "hub", api=hub)
    assert verify(pull("lab/demo@v1", "hub", tmp_path / "a", api=hub)[1]).same
    assert pull("lab/demo", "hub", tmp_path / "b", api=hub)[0] == "lab/demo@commit0"
    (tmp_path / "hub/commit0/README.md").write_text("altered")
    with pytest.raises(SharingError, match="checksum"):
        pull("lab/demo@v1", "hub", tmp_path / "c", api=hub)


def test_the_hub_has_what_is_asked_of_it() -> None:
    hub = pytest.importorskip("huggingface_hub")
    for name in ("create_repo", "list_repo_refs", "upload_folder", "create_tag", "repo_info", "snapshot_download"):
        assert callable(getattr(hub.HfApi, name))


@pytest.mark.parametrize("name", ["session-2-early", "session-2"])
def test_session_files_of_every_version_are_read(name: str) -> None:
    session = Session.load(FORMATS / f"{name}.safetensors")
    assert session.scene_offset == (0.0, 0.0)
    np.testing.assert_array_equal(session.responses, np.arange(120).reshape(60, 2) % 3)
    assert session.unit_ids.tolist() == [3, 8] and session.behavior["pupil"][7] == 7


@pytest.mark.parametrize("name", [f"{name.removeprefix('neurotwin-')}.safetensors" for name in READERS])
def test_twins_of_every_version_predict_what_they_predicted(name: str, tmp_path: Path) -> None:
    """Each format that has a reader has a file of it, and predictions that were made when it was new."""
    shutil.copy(FORMATS / name, tmp_path / "twin.safetensors")
    shutil.copy(FORMATS / name.replace(".", ".golden."), tmp_path / "golden.safetensors")
    verdict = verify(tmp_path)
    assert verdict.same and verdict.count > 0, verdict.text


@pytest.mark.parametrize("number", [3, 4])
def test_checkpoints_of_every_version_are_read(number: int) -> None:
    twins = [load_twin(FORMATS / file) for file in (f"checkpoint-{number}.ckpt", f"twin-{number}.safetensors")]
    np.testing.assert_array_equal(*(golden_predictions(twin)["rates"]["ada_0501"] for twin in twins))


def test_what_cannot_be_read_says_why_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"twin-2.*train it anew"):
        load_twin(FORMATS / "twin-2.safetensors")
    kinds = (("twin-4", CheckpointError, load_twin), ("ensemble-2", CheckpointError, load_twin))
    for kind, error, load in (*kinds, ("session-2", SessionError, Session.load)):
        arrays, metadata = load_arrays(FORMATS / f"{kind}.safetensors")
        metadata.pop("digest")
        metadata["format"] = f"neurotwin-{kind[:-1]}9"
        if "twin" in metadata:
            metadata["twin"] = json.dumps(json.loads(metadata["twin"]) | {"format": metadata["format"]})
        save_arrays(tmp_path / "newer.safetensors", arrays, metadata)
        with pytest.raises(error, match=r"newer\.safetensors.*newer neurotwin; run pip") as caught:
            load(tmp_path / "newer.safetensors")
        assert "\n" not in str(caught.value)


def test_the_zoo(tmp_path: Path) -> None:
    _, folder = pull("demo", ZOO, tmp_path / "demo")
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1_000_000
    verdict = verify(folder)
    assert verdict.same, verdict.text
    assert set(verdict.inputs.values()) == {"recorded"}
    assert [spec.name for spec in load_twin(folder).sessions] == ["ada_demo1", "ada_demo2", "bea_demo1", "bea_demo2"]
