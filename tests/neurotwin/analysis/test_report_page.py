"""The page of a report: what it says, what it leaves out and why, how large it is."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotwin.analysis import report_data
from neurotwin.analysis.report import load_run
from neurotwin.analysis.report_charts import chart_svg, diverging_png, grey_png, ticks
from neurotwin.analysis.report_data import gather, stored
from neurotwin.analysis.report_page import html_page
from neurotwin.analysis.report_units import RunView, Units, changes, typical
from neurotwin.cli import main
from neurotwin.config import ModelConfig
from neurotwin.metrics import Table
from neurotwin.models import TwinModel


class Page(HTMLParser):
    """Text, tags and the data of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(text)
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href") and not value.startswith("data:")]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def test_it_opens_with_whether_the_model_is_good(made_runs):
    text = Page(html_page([load_run(made_runs / "a")])).text
    table = Table.read(made_runs / "a" / "units.csv")
    means = [np.nanmean(table["bps"][table["session"] == name]) for name in ("ada_0", "bea_1")]
    opening = text[: text.index("Learning curves")]
    assert f"reaches a mean of {np.mean(means):.3f} bits per spike over 2 sessions" in opening
    assert f"median unit reaches {np.nanmedian(table['bps']):.3f}" in opening
    assert "18 of 18 units (100%) are predicted better than by a constant" in opening
    assert "2 units have no figure (NaN)" in opening and "CC_max, is 0.80" in opening
    assert "highest in epoch 2 of 3 (0.300); later epochs were not better" in opening
    assert "V4" in opening and "On the test split" in opening
    for part in ("2025-03-01 10:20", "train 20.0 min, validation 2.0 min, test 1.0 min", "70% / 20% / 10% of trials"):
        assert part in text


def test_nothing_comes_from_elsewhere_and_text_stays_text(made_runs, tmp_path):
    shutil.copytree(made_runs / "a", tmp_path / "evil")
    bad = "</script><script>alert(1)</script>&\"'"
    for path in (tmp_path / "evil" / "units.csv", tmp_path / "evil" / "run.json"):
        quoted = json.dumps(bad)[1:-1] if path.suffix == ".json" else bad.replace('"', '""')
        content = path.read_text().replace("net", quoted)
        path.write_text(content.replace("ada_0,ada", f'"{quoted}",ada'))
    page = html_page([load_run(tmp_path / "evil"), load_run(made_runs / "a")], title="My & <runs>")
    parsed = Page(page)
    assert parsed.links == [] and parsed.tags.count("script") == 2 and "http" not in page and "@import" not in page
    assert parsed.data["units"][0]["k"][0] == bad
    assert "<title>My &amp; &lt;runs&gt;</title>" in page


def test_a_thousand_units_take_less_than_ten_megabytes(made_runs):
    page = html_page([load_run(made_runs / "big")])
    data = Page(page).data["units"]
    assert len(page.encode()) < 10e6 and len(data) == 1000
    assert all({"trace", "psth", "rf", "mei", "x"} <= unit.keys() for unit in data)


def test_what_has_no_room_is_counted(made_runs, monkeypatch):
    monkeypatch.setattr("neurotwin.analysis.report_units._BUDGET", 30_000)
    page = html_page([load_run(made_runs / "big")])
    lacking = [unit for unit in Page(page).data["units"] if "rf" not in unit]
    assert 0 < len(lacking) < 1000 and f"{len(lacking)} units have no pictures here" in page


def test_units_that_changed_are_marked(made_runs):
    runs = [load_run(made_runs / name) for name in ("a", "b")]
    parsed = Page(html_page(runs, compare=True))
    changed = [unit for unit in parsed.data["units"] if unit["c"]]
    assert [(unit["r"], unit["k"]) for unit in changed] == [("net (b)", ["ada_0", "3"]), ("net (b)", ["bea_1", "3"])]
    assert "2 of 20 units of net (b) changed by more than 0.01" in parsed.text
    assert not any(unit["c"] for unit in Page(html_page(runs, compare=True, tolerance=0.2)).data["units"])


def test_units_that_one_run_lacks_count_as_changes(table):
    old, new = table(["a_1"], [3], bps=[0.1]), table(["a_1", "a_1"], [3, 7], bps=[np.nan, 0.2])
    words, gone = changes(old, new, tolerance=0.01)
    assert words == {("a_1", "3"): "0.100 → NaN", ("a_1", "7"): "new"} and gone == []
    assert changes(new, old, tolerance=0.01)[1] == [("a_1", "7")]


@pytest.mark.parametrize(
    "lost", ["units.csv", "units_test.csv", "report.safetensors", "metrics.csv", "experiments", "datasets.yaml"]
)
def test_any_part_may_be_missing(made_runs, tmp_path, lost):
    shutil.copytree(made_runs / "a", tmp_path / "run")
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Page(html_page([load_run(tmp_path / "run")])).text
    said = {
        "units.csv": "has no figures", "units_test.csv": "no figures of a test split",
        "metrics.csv": "No run has learning", "report.safetensors": "do not say in which area",
        "experiments": "no results of experiments",
    }  # fmt: skip
    assert said.get(lost, "Runs") in text


@pytest.mark.parametrize("broken", [
    "units_test.csv", "report.safetensors", "experiments/receptive_field/units.csv",
    "experiments/receptive_field/arrays.npz", "experiments/gone/settings.json",
])  # fmt: skip
def test_any_part_may_be_damaged(made_runs, tmp_path, broken):
    shutil.copytree(made_runs / "a", tmp_path / "run")
    (tmp_path / "run" / broken).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / broken).write_bytes(b"{\x00\xff")
    assert "net" in Page(html_page([load_run(tmp_path / "run")])).text


def test_what_behaviour_adds_comes_from_the_ablation(made_runs, tmp_path):
    shutil.copytree(made_runs / "a", tmp_path / "run")
    folder = tmp_path / "run" / "experiments" / "ablation"
    folder.mkdir()
    (folder / "settings.json").write_text('{"experiment": "ablation"}')
    rows = ["ada_0,1,0.01,-0.02,0.3,0.1", "ada_0,2,0.03,0.02,0.1,0.05", "ada_0,4,nan,nan,0.2,0.1"]
    names = "session,unit_id,pupil.median.gain,pupil.median.gain_low,behavior.median.gain,behavior.median.gain_low"
    (folder / "units.csv").write_text("\n".join([names, *rows]) + "\n")
    text = Page(html_page([load_run(tmp_path / "run")])).text
    opening = text[: text.index("Learning curves")]
    assert "Knowing all behaviour rather than its median adds +0.200" in opening and "for 3 of 3 units" in opening
    assert "Knowing pupil rather than its median adds +0.020" in text and "above 0 for 1 of 2 units" in text


def test_an_old_table_without_newer_figures(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "old", "parameters": 7}')
    (tmp_path / "units.csv").write_text(
        "session,subject,unit_id,spikes,bins,bps\na_1,a,3,5.0,10,0.5\na_1,a,4,0.0,10,nan\n"
    )
    parsed = Page(html_page([load_run(tmp_path)]))
    assert "mean of 0.500 bits per spike" in parsed.text and "there is no noise ceiling" in parsed.text
    assert [unit["rank"] for unit in parsed.data["units"]] == [0.0, None]


def test_a_table_without_any_figure(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "mute", "parameters": 7}')
    (tmp_path / "units.csv").write_text("session,subject,unit_id,spikes,bins,bps\na_1,a,4,0.0,10,nan\n")
    assert "No unit of mute has a figure" in Page(html_page([load_run(tmp_path)])).text


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(prepared, tmp_path):
    """A run with a checkpoint and recordings that are here; the test split holds repeats."""
    model = ModelConfig.model_validate({"frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3}}})
    twin = TwinModel(model, [session.spec for session in prepared]).eval()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    twin.save(tmp_path / "twin.safetensors")
    (tmp_path / "run" / "run.json").write_text('{"name": "ln", "parameters": 7}')
    from_model = lambda folder: tmp_path / "twin.safetensors"  # noqa: E731
    return SimpleNamespace(folder=tmp_path / "run", twin=twin, find=from_model)


def test_test_figures_and_curves_are_computed_once(trained, prepared, monkeypatch):
    monkeypatch.setattr(report_data, "find_checkpoint", trained.find)
    found = gather(load_run(trained.folder))
    assert found.notes == ()
    expected = report_data.score_session(trained.twin, prepared[0], 0, "test").table()
    np.testing.assert_array_equal(found.test["bps"][: len(expected)], expected["bps"])
    session = found.sessions["ada_1"]
    assert session.bins["test"] == 80 and session.psth.n_repeats == 4 and session.psth.split == "test"
    monkeypatch.setattr(report_data, "load_twin", lambda path: pytest.fail("computed again"))
    again = gather(load_run(trained.folder))
    np.testing.assert_array_equal(again.sessions["ada_1"].trace.observed, session.trace.observed)
    np.testing.assert_array_equal(again.test["bps"], found.test["bps"])


def test_psths_and_traces_are_those_of_the_recording(trained, prepared, monkeypatch):
    monkeypatch.setattr(report_data, "find_checkpoint", trained.find)
    monkeypatch.setattr(report_data, "_POINT_S", 1 / 60)  # a point a bin
    session = gather(load_run(trained.folder)).sessions["ada_1"]
    data = prepared[0]
    usable = (data.split == 2) & (np.arange(data.n_bins) - data.run_start >= 2)
    for row, frame in enumerate(np.unique(data.repeat_id[usable & data.mask.any(1)])):
        bins = np.flatnonzero(usable & (data.repeat_id == frame) & data.mask.any(1))
        np.testing.assert_allclose(session.psth.observed[row], data.responses[bins].mean(0) * 60, rtol=1e-6)
    drawn = session.trace.observed[~np.isnan(session.trace.observed).any(1)]
    recorded = np.where(data.mask, data.responses, np.nan)[
        (data.split == 1) & (np.arange(data.n_bins) - data.run_start >= 2)
    ]
    np.testing.assert_allclose(drawn, recorded[~np.isnan(recorded).any(1)] * 60, rtol=1e-6)


def test_recordings_that_are_not_here_are_a_note(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(report_data, "find_checkpoint", trained.find)
    found = gather(load_run(trained.folder), data_dir=tmp_path / "nowhere")
    assert found.test is None and "Of 2 recordings, 0 are on this machine" in found.notes[0]


def test_no_checkpoint_or_a_damaged_one_is_a_note(trained):
    assert "checkpoint is not in its folder" in gather(load_run(trained.folder)).notes[-1]
    (trained.folder / "checkpoints" / "best.ckpt").write_bytes(b"torn")
    assert "Nothing more could be computed" in gather(load_run(trained.folder)).notes[-1]


def test_joined_stretches_are_means_with_a_gap_between():
    values = np.array([[1.0, 3.0, 5.0, np.nan], [2.0, 2.0, np.nan, np.nan]])[:, :, None]
    np.testing.assert_array_equal(report_data._joined(values, 2)[:, 0], [2, 5, np.nan, 2])


# --- pieces -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 2) | st.just(math.nan), max_size=20))
def test_best_median_and_worst(merits):
    table = Table.of_session("a_1", "a", list(range(len(merits))), "poisson",
                             {"bins": np.full(len(merits), 1), "bps": np.array(merits, float)})  # fmt: skip
    run = SimpleNamespace(table=table)
    units = Units([RunView(name="x", run=run)]).all if merits else []
    found = dict(typical(units))
    known = sorted(m for m in merits if not math.isnan(m))
    assert bool(found) == bool(known)
    if known:
        assert found["best"].merit == known[-1] and (len(known) == 1 or found["worst"].merit == known[0])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low, span):
    values = ticks(low, low + span)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= value <= low + span + slack for value in values)
    assert len(values) <= 12


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 80), (1, 500)])
def test_pictures_are_png_files(shape, tmp_path):
    from_skimage = pytest.importorskip("skimage.io")
    values = np.zeros(shape)
    values[0, 0] = 3.0
    for number, png in enumerate((diverging_png(values, 32), grey_png(values + 127, 32))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png)
        image = from_skimage.imread(path)[..., :3]
        assert max(image.shape[:2]) <= 32
        assert image[0, 0].tolist() == ([178, 24, 43], [255, 255, 255])[number]


def test_charts_leave_out_what_is_not_finite():
    lines = {"a": (np.array([1.0, 2.0, 3.0]), np.array([0.0, np.nan, 1.0])), "b": (np.zeros(1), np.full(1, np.nan))}
    svg = chart_svg("t", lines=lines, xlabel="x", ylabel="<y>")
    (path,) = re.findall(r'class="line c0" d="([^"]+)"', svg)
    assert path.count("L") == 1 and "&lt;y&gt;" in svg and "nan" not in svg
    assert chart_svg("t", lines={"a": (np.zeros(0), np.zeros(0))}, xlabel="x", ylabel="y") == ""


@pytest.mark.parametrize("order", [["--compare", "a", "b"], ["b", "--compare", "a"], ["a", "b", "--compare"]])
def test_the_command_compares(made_runs, capsys, order):
    words = [str(made_runs / word) if word in ("a", "b") else word for word in order]
    assert main(["report", *words]) == 0
    out = capsys.readouterr().out
    assert "2 of 20 units changed by more than 0.01 in bps" in out and "ada_0/3: " in out


def test_a_comparison_takes_two(made_runs, capsys):
    assert main(["report", str(made_runs / "a"), "--compare"]) == 2
    assert "needs two runs" in capsys.readouterr().err


def test_what_was_stored_is_read_without_computing(made_runs):
    found = stored(load_run(made_runs / "a"))
    assert found.test is not None and set(found.sessions) == {"ada_0", "bea_1"} and found.notes == ()
