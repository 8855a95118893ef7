"""Learning from a teacher: what it expects, on which clips, with which loss; and a run from start to end."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neurotwin.analysis.parity import parity, rates_in_bins
from neurotwin.cli import main as neurotwin
from neurotwin.clip import Target
from neurotwin.config import DatasetConfig, ModelConfig, define
from neurotwin.data.prepare import prepare
from neurotwin.data.session import Session
from neurotwin.metrics.table import EvaluationError
from neurotwin.models import Ensemble, TwinModel, load_twin
from training import MultiDatasetDM
from training import train_ddp_multidataset as script
from training.teacher import Teacher, loss_of


def temporal(size: int) -> dict:
    return {"type": "learnable_temporal", "params": {"kernel_size": size, "num_channels": 2, "init_type": "random"}}


STUDENT = {"frontend": temporal(3), "readout": {"type": "gaussian"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A session whose last three trials have no valid response; a teacher that sees more frames than the student."""
    folder = tmp_path_factory.mktemp("lab")
    rng, n_bins = np.random.default_rng(0), 600
    session = Session(
        name="ada_1", bin_rate=60.0, stimulus=rng.integers(0, 256, (n_bins, 6, 6), dtype=np.uint8),
        responses=rng.poisson(0.5, (n_bins, 3)).astype(np.uint8), trial=np.arange(n_bins) // 30, unit_ids=[4, 7, 9],
        valid=np.arange(n_bins) < 510,
    )  # fmt: skip
    path = session.save(folder / "data" / "ada_1.safetensors")
    (folder / "sessions").mkdir()
    config = {"path": str(path), "keys_lags": {"stim": "0..6"}}
    (folder / "sessions" / "ada_1.yaml").write_text(yaml.safe_dump(config))
    (folder / "student.yaml").write_text(yaml.safe_dump(STUDENT))
    (prepared,) = prepare([DatasetConfig(session="ada_1", **config)])
    members = [TwinModel(ModelConfig(frontend=temporal(size)), [prepared.spec]) for size in (4, 7)]
    for seed, member in enumerate(members):
        for parameter in member.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.data.add_(0.5 * noise)
    Ensemble(members, ["four", "seven"]).save(folder / "teacher.safetensors")
    return folder


def configs(lab: Path, **keys) -> list[DatasetConfig]:
    values = yaml.safe_load((lab / "sessions" / "ada_1.yaml").read_text())
    return [DatasetConfig(session="ada_1", **values | keys)]


def test_the_teacher_predicts_every_training_stimulus_and_no_other(lab):
    teacher = Teacher(lab / "teacher.safetensors")
    (prepared,) = prepare(configs(lab, keys_lags={"stim": "0..2"}))  # the student sees less
    (rates,) = teacher.lessons([prepared]).rates
    known, place = np.isfinite(rates).all(axis=1), np.arange(600) % 30
    split = np.asarray(prepared.split)
    assert set(split[510:]) == {-1}  # without a response a trial is of no part
    np.testing.assert_array_equal(known, (place >= 6) & (split < 1))
    whole = teacher.twin.predict("ada_1")
    np.testing.assert_array_equal(rates[known], whole.rates[known])


def test_clips_of_stimuli_without_responses_are_taken_with_a_teacher_alone(lab):
    plain = MultiDatasetDM(configs(lab), batch_size=64, clip_len=8)
    learns = MultiDatasetDM(configs(lab), batch_size=64, clip_len=8, teacher=Teacher(lab / "teacher.safetensors"))
    found = learns.table.locate()
    assert plain.table.locate().start.max() < 510 <= found.start.max()
    bins = np.concatenate([np.arange(a, b) for a, b in zip(found.start, found.stop, strict=True)])
    (rates,) = learns.lessons.rates
    assert len(np.unique(bins)) == len(bins)
    np.testing.assert_array_equal(np.sort(bins), np.flatnonzero(np.isfinite(rates).all(axis=1)))
    np.testing.assert_array_equal(learns.table.count(), 3 * (found.stop - found.start))
    rows = np.array([0, len(learns.table) - 1])
    (sample,) = learns.table.samples(rows, context=6)
    sample = learns.lessons.taught(sample)
    for row, clip in enumerate(rows):
        start, stop = found.start[clip], found.stop[clip]
        np.testing.assert_array_equal(sample.target.expected[row, : stop - start], rates[start:stop])
        assert sample.target.expected[row, stop - start :].isnan().all()
    assert not sample.target.mask[1].any() and sample.target.mask[0].any()


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial", "gaussian", "gamma"])
def test_the_loss_about_rates_is_the_mean_loss_over_responses_drawn_from_them(kind):
    """Up to a constant: so its differences between rates are compared."""
    likelihood = define("likelihood", kind)(None, 1)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.fill_(0.3)
    generator = torch.Generator().manual_seed(0)
    expected = torch.full((400_000, 1), 0.8)
    drawn = likelihood.sample(expected, generator=generator)
    one, cases = torch.ones(len(drawn), 1, dtype=torch.bool), (0.4, 0.8, 1.3)
    sampled = [likelihood.nll(torch.full_like(drawn, rate), drawn, one).item() / len(drawn) for rate in cases]
    exact = [likelihood.cross_entropy(torch.tensor([[rate]]), torch.tensor([[0.8]])).item() for rate in cases]
    np.testing.assert_allclose(np.diff(exact), np.diff(sampled), rtol=0.03)
    rates = torch.tensor([[0.5]], requires_grad=True)
    target = Target(torch.tensor([[1.0]]), torch.tensor([[True]]), None, torch.tensor([[0.9]]))
    half = loss_of(likelihood, rates, target, 0.5)
    parts = [loss_of(likelihood, rates, target, 1e-12), loss_of(likelihood, rates, target, 1.0)]
    assert half.item() == pytest.approx(0.5 * sum(part.item() for part in parts), rel=1e-4)
    # Of the likelihood's own parameters, nothing is learned from rates.
    for parameter in likelihood.parameters():
        (gradient,) = torch.autograd.grad(parts[1], parameter, retain_graph=True, allow_unused=True)
        assert gradient is None or not gradient.any()
        assert parameter.requires_grad
    assert torch.autograd.grad(parts[1], rates)[0].item() != 0


def test_nothing_is_learned_where_the_teacher_expects_nothing():
    likelihood = define("likelihood", "poisson")(None, 2)
    rates = torch.tensor([[0.5, 0.7]], requires_grad=True)
    target = Target(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), None, torch.tensor([[0.9, float("nan")]]))
    loss_of(likelihood, rates, target, 0.5).backward()
    # d/dλ of (λ − λ* log λ) is 1 − λ*/λ.
    torch.testing.assert_close(rates.grad, torch.tensor([[0.5 * (1 - 0.9 / 0.5), 0.0]]))


def test_a_teacher_that_was_trained_on_the_validation_is_refused(lab):
    (prepared,) = prepare(configs(lab, seed=3))
    with pytest.raises(EvaluationError, match="is validation or test here, and the other model was trained on it"):
        Teacher(lab / "teacher.safetensors").lessons([prepared])
    (fewer,) = prepare(configs(lab, cids=[4, 7]))
    with pytest.raises(EvaluationError, match="units prepared are not"):
        Teacher(lab / "teacher.safetensors").lessons([fewer])


def test_parity_of_a_twin_with_itself_and_with_another(lab):
    teacher = load_twin(lab / "teacher.safetensors")
    (prepared,) = prepare(configs(lab))
    same = parity(teacher, teacher, [prepared])
    np.testing.assert_allclose(same.correlation, 1)
    np.testing.assert_array_equal(same.teacher, same.student)
    other = parity(teacher, teacher.alone[0], [prepared])
    used = (np.asarray(prepared.split) == 1) & np.isfinite(rates_in_bins(teacher, prepared)).all(axis=1)
    a, b = (rates_in_bins(twin, prepared)[used, 1] for twin in (teacher, teacher.alone[0]))
    assert other.correlation[1] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6) and other.correlation[1] < 0.999


def test_distillation_from_start_to_end(lab, tmp_path, capfd):
    """A student of the teacher's rates alone comes near to them, and near enough to be written down unit by unit."""
    flags = "--max_epochs 12 --steps_per_epoch 40 --clip_len 8 --learning_rate 3e-2 --accelerator cpu --logger csv"
    given = ["--model_config", f"{lab}/student.yaml", "--dataset_configs_path", f"{lab}/sessions"]
    place = [
        "--checkpoint_dir",
        str(tmp_path),
        "--teacher_weight",
        "1",
        "--output",
        str(tmp_path / "small.safetensors"),
    ]
    assert neurotwin(["distil", f"{lab}/teacher.safetensors", *given, *place, "--flags", *flags.split()]) == 0
    folder = tmp_path / "student-distilled"
    with open(folder / "parity.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["unit_id"] for row in rows] == ["4", "7", "9"]
    record = json.loads((folder / "run.json").read_text())
    assert record["flags"]["teacher"] == f"{lab}/teacher.safetensors" and record["flags"]["teacher_weight"] == 1
    (prepared,) = prepare(configs(lab))
    student, teacher = load_twin(tmp_path / "small.safetensors"), load_twin(lab / "teacher.safetensors")
    found = parity(teacher, student, [prepared], "train")
    fresh = TwinModel(student.config, student.sessions)
    fresh.initialise([prepared.statistics()])
    assert np.median(found.correlation) > np.median(parity(teacher, fresh, [prepared], "train").correlation) + 0.2
    assert "parameters" in capfd.readouterr().out


def test_a_run_with_a_teacher_resumes_to_the_same_bits(lab, tmp_path):
    flags = "--steps_per_epoch 3 --clip_len 8 --accelerator cpu --logger csv --warmup_epochs 0"
    given = ["--model_config", f"{lab}/student.yaml", "--dataset_configs_path", f"{lab}/sessions"]
    given += [*flags.split(), "--teacher", f"{lab}/teacher.safetensors", "--checkpoint_dir", str(tmp_path)]
    for name, epochs, more in (("once", 4, ()), ("twice", 2, ()), ("twice", 4, ("--resume", "auto"))):
        assert script.main([*given, "--experiment_name", name, "--max_epochs", str(epochs), *more]) == 0
    once, twice = (load_twin(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("once", "twice"))
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


def test_a_student_is_told_at_once_that_its_sessions_are_not_the_teachers(lab, tmp_path, capsys):
    (tmp_path / "sessions").mkdir()
    values = yaml.safe_load((lab / "sessions" / "ada_1.yaml").read_text())
    (tmp_path / "sessions" / "bob_2.yaml").write_text(yaml.safe_dump(values))
    given = ["--model_config", f"{lab}/student.yaml", "--dataset_configs_path", f"{tmp_path}/sessions"]
    code = script.main([*given, "--teacher", f"{lab}/teacher.safetensors", "--checkpoint_dir", str(tmp_path / "runs")])
    assert code == 2 and "was not trained on session" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_stimuli_of_other_types_are_learned_from_without_their_responses(tmp_path, lab):
    """Of each trial the second half shows noise, on which neither teacher nor student is trained."""
    rng, n_bins = np.random.default_rng(1), 600
    kinds = np.where(np.arange(n_bins) % 30 < 15, "movie", "noise")
    session = Session(
        name="ada_1", bin_rate=60.0, stimulus=rng.integers(0, 256, (n_bins, 6, 6), dtype=np.uint8),
        responses=rng.poisson(0.5, (n_bins, 3)).astype(np.uint8), trial=np.arange(n_bins) // 30, unit_ids=[4, 7, 9],
        stimulus_type=kinds, behavior={"pupil": rng.random(n_bins) + (kinds == "noise")},
    )  # fmt: skip
    path = session.save(tmp_path / "ada_1.safetensors")
    pupil = {"pupil": {"source": "pupil", "ops": ["maxnorm"], "expose_as": "behavior"}}
    transforms = {"stim": {"source": "stim", "ops": ["pixelnorm"]}} | pupil
    values = {"session": "ada_1", "path": str(path), "keys_lags": {"stim": "0..4"}, "transforms": transforms}
    config = DatasetConfig(types=["movie"], **values)
    (prepared,) = prepare([config])
    model = ModelConfig(frontend=temporal(4), modulator={"type": "film"})
    teacher = TwinModel(model, [prepared.spec]).save(tmp_path / "teacher.safetensors")
    with_types = {"batch_size": 64, "clip_len": 8, "teacher": Teacher(teacher, ["noise"])}
    dm = MultiDatasetDM([config], **with_types)
    assert len(dm.lessons.sessions) == 2 if dm.setup() is None else False
    extra = dm.lessons.sessions[1]
    # The largest pupil of training, not that of the noise, which is larger.
    np.testing.assert_allclose(
        extra.behavior.max() / extra.behavior.min(),
        session.behavior["pupil"][kinds == "noise"].max() / session.behavior["pupil"][kinds == "noise"].min(),
        rtol=1e-5,
    )
    assert extra.behavior.max() > 1.2 and not extra.mask.any() and len(dm.sessions) == 1
    found = dm.table.locate()
    assert set(found.session) == {0, 1}
    rows = np.flatnonzero(found.session == 1)[:2]
    (sample,) = dm.table.samples(rows, context=4)
    sample = dm.lessons.taught(sample)
    assert sample.session == 0 and not sample.target.mask.any() and sample.target.expected.isfinite().any()
    shown = load_twin(teacher).predict(
        session.stimulus[15:30], {"pupil": session.behavior["pupil"][15:30]}, session="ada_1", bin_rate=60.0
    )
    row = int(np.flatnonzero(extra.trial == 0)[4])
    np.testing.assert_allclose(dm.lessons.rates[1][row], shown[4], rtol=1e-4)
    batches = [dm.train_dataloader().batch(step) for step in range(3)]
    assert all(batch.sessions == (0,) and {s.session for s in batch.samples} == {0} for batch in batches)
    assert any(len(batch.samples) == 2 for batch in batches)
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "ada_1.yaml").write_text(yaml.safe_dump(values | {"types": ["movie"]}))
    flags = ["--dataset_configs_path", str(tmp_path / "sessions"), "--model_config", f"{lab}/student.yaml"]
    arguments = script.parse_arguments([*flags, "--teacher", str(teacher), "--teacher_types", "noise"])
    assert len(script.make_data(arguments, ModelConfig(**STUDENT), (), arguments.batch_size).lessons.sessions) == 2
    for wrong, text in ((["movie"], "is trained on that type"), (["rain"], "no session has stimuli")):
        with pytest.raises(EvaluationError, match=text):
            Teacher(teacher, wrong).lessons([prepared])


def test_the_expected_rates_travel_with_a_sample(lab):
    learns = MultiDatasetDM(configs(lab), batch_size=64, clip_len=8, teacher=Teacher(lab / "teacher.safetensors"))
    batch = learns.train_dataloader().batch(0)
    target = batch.samples[0].of_session(0).to("cpu").target
    assert target.expected.shape == target.responses.shape and batch.count >= int(target.expected.isfinite().sum()) > 0
    assert replace(target, expected=None).expected is None
