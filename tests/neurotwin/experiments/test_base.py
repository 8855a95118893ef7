"""The common result and its folder, options, what is held, and the command."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from neurotwin.cli import main
from neurotwin.config import ConfigError, registered
from neurotwin.experiments import ExperimentError, Gratings, Presenter, Result, model_digest, options_of

from .conftest import make_twin


def small(**more):
    options = {"temporal_frequencies": (7.5,), "seconds": 0.2, "contrasts": (), "n_diameters": 0, "plaids": False}
    return Gratings(**(options | more))


def test_a_result_is_written_whole_and_read_back(tmp_path):
    result = Result(
        tables={"units": {"session": np.array(["a", "b"]), "unit_id": np.array([1, 2]), "x": np.array([0.1, np.nan])}},
        arrays={"map": np.arange(6.0).reshape(2, 3)}, axes={"map": ("unit", "x")},
        figures={"map": lambda: Figure(figsize=(1, 1))}, files={"more/note.txt": lambda path: path.write_text("hi")},
        settings={"experiment": "one", "value": np.float32(2)},
    )  # fmt: skip
    folder = result.write(tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["arrays.npz", "map.png", "more", "settings.json", "units.csv"]
    read = Result.read(folder)
    assert read.tables["units"]["unit_id"].dtype == np.int64
    np.testing.assert_array_equal(read.tables["units"]["x"], [0.1, np.nan])
    np.testing.assert_array_equal(read.arrays["map"], result.arrays["map"])
    assert read.axes == {"map": ("unit", "x")} and read.settings == {"experiment": "one", "value": 2.0}
    result.tables["units"]["x"] = np.array([5.0, 6.0])
    result.write(folder)
    assert Result.read(folder).tables["units"]["x"].tolist() == [5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_result_that_cannot_be_written_leaves_what_was_there(tmp_path):
    good = Result(settings={"experiment": "one"})
    good.write(tmp_path / "out")

    def fails():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Result(settings={"experiment": "two"}, figures={"f": fails}).write(tmp_path / "out")
    assert Result.read(tmp_path / "out").settings["experiment"] == "one" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ExperimentError, match="holds no result"):
        good.write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(ExperimentError, match="holds no result"):
        Result.read(tmp_path / "mine")


def test_frames_need_what_is_installed():
    result = Result(tables={"units": {"unit_id": np.array([1])}}, arrays={"a": np.ones(2)}, axes={"a": ("t",)})
    for module, call in (("pandas", result.to_frame), ("xarray", result.to_xarray)):
        if find_spec(module) is None:
            with pytest.raises(ExperimentError, match=f"{module} is not installed"):
                call()
        else:
            assert len(call()) == 1
    with pytest.raises(ExperimentError, match="no table 'unit'"):
        result.to_frame("unit")


def test_the_same_is_not_done_twice(linear, tmp_path, monkeypatch):
    folder = tmp_path / "gratings"
    first = small().run(linear.twin, folder=folder)
    assert small().is_done(folder, linear.twin)
    monkeypatch.setattr(Gratings, "measure", lambda *_: pytest.fail("done again"))
    again = small().run(linear.twin, folder=folder)
    np.testing.assert_array_equal(again.tables["units"]["osi"], first.tables["units"]["osi"])
    assert not small(contrast=0.4).is_done(folder, linear.twin)
    other = make_twin("linear").twin
    assert model_digest(other) == model_digest(linear.twin)
    with torch.no_grad():
        other.per_session[0].readout.features[0, 0] += 1e-3
    assert not small().is_done(folder, other)


def test_options_are_checked():
    assert set(registered("experiment")) >= {"receptive_field", "gratings", "exciting_stimulus", "ablation"}
    with pytest.raises(ExperimentError, match=r"gratings: .*unknown key 'contrasst'; did you mean 'contrast"):
        options_of("gratings", {"contrasst": 1})
    with pytest.raises(ExperimentError, match="gratings: option contrast"):
        options_of("gratings", {"contrast": 2})
    with pytest.raises(ConfigError, match="did you mean 'gratings'"):
        options_of("grating", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temporal_frequencies": (30.0,)}, "below 30 Hz"), ({"spatial_frequencies": (9.0,)}, "half a cycle per pixel")],
)
def test_what_a_screen_cannot_show(linear, options, message):
    with pytest.raises(ExperimentError, match=message):
        small(**options).run(linear.twin)


def test_the_core_runs_once_for_all_sessions(monkeypatch):
    twin = make_twin("linear", names=("ada_1", "bea_1")).twin
    calls = []
    inner = twin.convnet.forward
    monkeypatch.setattr(twin.convnet, "forward", lambda *a, **k: calls.append(1) or inner(*a, **k))
    presenter = Presenter(twin)
    (group,) = presenter.groups
    rates = presenter.rates(group, torch.rand(2, 10, 1, 16, 16) * 254)
    assert len(calls) == 1 and set(rates) == {0, 1}
    torch.testing.assert_close(rates[0], rates[1])
    assert Presenter(twin, sessions=["bea_1"]).indices == [1]
    with pytest.raises(ExperimentError, match="did you mean 'bea_1'"):
        Presenter(twin, sessions=["bea_2"])


@pytest.mark.parametrize("frames", [9, 40, 4096])
def test_batches_change_nothing(linear, frames):
    presenter = Presenter(linear.twin, batch_frames=frames)
    (group,) = presenter.groups
    movies = torch.rand(7, 10, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 254
    shown = presenter.show(group, 7, lambda rows: movies[rows])[0]
    np.testing.assert_allclose(shown, presenter.rates(group, movies)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_behaviour_is_held_where_it_is_asked_for(gated):
    def rate(**more):
        presenter = Presenter(gated.twin, **more)
        (group,) = presenter.groups
        return presenter.rates(group, torch.full((1, 2, 1, 4, 4), 127.0))[0][0, -1, 0].item()

    names = list(gated.prepared.spec.behavior_names)
    values = [0.0, 0.0]
    values[names.index("pupil")] = 0.5
    assert rate(prepared=[gated.prepared]) == pytest.approx(np.exp(gated.base), rel=1e-4)
    assert rate(behavior="zeros") == pytest.approx(np.exp(gated.base), rel=1e-5)
    assert rate(behavior=values) == pytest.approx(np.exp(gated.base + 0.5 * gated.gain), rel=1e-5)
    assert rate(behavior={"ada_1": values}) == rate(behavior=values)
    with pytest.raises(ExperimentError, match="give --data_dir, --behavior zeros, or --behavior with 2 numbers"):
        Presenter(gated.twin)
    with pytest.raises(ExperimentError, match=r"2 variables \(.*\), and 1 are given"):
        Presenter(gated.twin, behavior=[1.0])


def test_the_command(gated, tmp_path, capsys):
    out = tmp_path / "result"
    command = ["experiment", "ablation", str(gated.path), "--output", str(out), "--options", "n_bootstraps=20"]
    assert main([*command, "modes=[median]"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["options"]["modes"] == ["median"] and settings["sessions"] == ["ada_1"]
    assert (out / "units.csv").is_file() and (out / "gains.png").is_file()
    before = (out / "settings.json").stat().st_mtime_ns
    assert main([*command, "modes=[median]"]) == 0 and (out / "settings.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--options", "n_bootstraps"], "write KEY=VALUE"),
        (["--options", "n_bootstrap=3"], "did you mean 'n_bootstraps'?"),
        (["--behavior", "much"], "give median, zeros, or numbers"),
        (["--sessions", "bob"], "no session 'bob'"),
        (["--data_dir", "nowhere"], "its recording is needed"),
    ],
)
def test_mistakes_are_one_line(gated, tmp_path, capsys, arguments, message):
    code = main(["experiment", "ablation", str(gated.path), "--output", str(tmp_path / "r"), *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and message in error and not (tmp_path / "r").exists()
