"""Tables of units: files that are read back to the last bit, old files, summaries; and the registry of metrics."""

import math

import numpy as np
import pytest
import torch

from neurotwin.config import register, registry
from neurotwin.likelihoods import Poisson
from neurotwin.metrics import (
    EvaluationError,
    Metric,
    Sums,
    Table,
    columns,
    compute_metrics,
    metrics,
    metrics_reference,
    summarize_table,
)

OLD = "session,subject,unit_id,spikes,bins,nll,bps,d2,correlation,oracle_bps,fraction_of_oracle\n"


@pytest.fixture
def own_metric(monkeypatch: pytest.MonkeyPatch) -> type[Metric]:
    """A metric that a user adds, gone again after the test."""
    monkeypatch.setitem(registry._DEFINITIONS, "metric", dict(registry._DEFINITIONS["metric"]))

    @register("metric", "mean_rate", "average_rate")
    class MeanRate(Metric):
        title = "mean rate"
        formula = "Σ m λ / Σ m | a bar"

        @staticmethod
        def compute(evidence):
            return evidence.sums["rate"] / evidence.sums["bins"]

    return MeanRate


def table(session: str = "ada_1", ids=(3, 8), likelihood: str = "poisson", **figures: list[float]) -> Table:
    values = {"bins": np.full(len(ids), 10)} | {key: np.array(value) for key, value in figures.items()}
    return Table.of_session(session, session.split("_")[0], ids, likelihood, values)


def same(a: Table, b: Table) -> None:
    assert list(a.columns) == list(b.columns)
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype.kind == b[name].dtype.kind, name


def test_columns_follow_the_registry() -> None:
    names = list(columns())
    assert names[:4] == ["session", "subject", "unit_id", "likelihood"] and names[4:] == list(metrics())
    known = "spikes bins nll bps d2 correlation oracle_bps fraction_of_oracle correlation_to_average cc_norm cc_max fev"
    assert set(known.split()) <= set(names)
    assert columns()["bins"] is int and columns()["bps"] is float


@pytest.mark.parametrize("ids", [(3, -8), ("a,1", 'unit "7"'), ("007", "8"), ("é", "")])
def test_a_file_gives_back_the_same_table(tmp_path, ids) -> None:
    figures = {"bps": [1 / 3, math.nan], "nll": [1e-300, -math.inf], "spikes": [0.1 + 0.2, 5]}
    written = Table.concatenate([table(ids=ids, **figures), table("bea_2", ids=ids, likelihood="gaussian")])
    written.write(tmp_path / "deep" / "units.csv")
    same(Table.read(tmp_path / "deep" / "units.csv"), written)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["units.csv"]


def test_a_table_from_before_a_metric_still_reads(tmp_path) -> None:
    path = tmp_path / "units.csv"
    path.write_text(OLD + "ada_1,ada,3,12.0,100,0.5,0.25,0.1,0.3,nan,nan\n")
    read = Table.read(path)
    assert list(read.columns) == list(columns())
    assert (read["bps"][0], read["bins"][0], read["likelihood"][0]) == (0.25, 100, "poisson")
    assert np.isnan(read["bits_per_bin"]).all() and np.isnan(read["cc_norm"]).all()
    assert read["unit_id"].dtype == np.int64


def test_a_metric_of_ones_own_is_a_column(own_metric, tmp_path, monkeypatch) -> None:
    sums = Sums(Poisson(n_units=2))
    sums.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2), torch.ones(2, 1))
    assert sums.compute()["mean_rate"].tolist() == [2.0, 3.0]
    assert "average_rate" not in columns()  # a second name is no second column
    rows = Table.of_session("ada_1", "ada", (1, 2), "poisson", compute_metrics(sums.evidence()))
    assert rows["mean_rate"].tolist() == [2.0, 3.0]
    assert r"a bar" in metrics_reference() and r"\| a bar" in metrics_reference()
    rows.write(tmp_path / "units.csv")
    monkeypatch.undo()
    read = Table.read(tmp_path / "units.csv")  # where the metric is not known
    assert read["mean_rate"].tolist() == [2.0, 3.0]
    both = Table.concatenate([read, table("bea_1")])
    assert both["mean_rate"][:2].tolist() == [2.0, 3.0] and np.isnan(both["mean_rate"][2:]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such table"),
        ("", "lacks the columns session, subject, unit_id, bins"),
        ("model,parameters\nln,3\n", "lacks the columns"),
        (OLD + "ada_1,ada,3\n", "units.csv:2: 3 values under 11 columns"),
        (OLD + "ada_1,ada,3,12.0,many,0.5,0.25,0.1,0.3,nan,nan\n", "column bins"),
        (OLD + "ada_1,ada,3,12.0,9,0.5,high,0.1,0.3,nan,nan\n", "column bps"),
        (OLD + "ada_1,ada,99999999999999999999,1,9,0.5,1,0.1,0.3,nan,nan\n", "units.csv"),
        (OLD.replace("bps", "nll"), "occurs twice"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message) -> None:
    path = tmp_path / "units.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EvaluationError, match=message) as error:
        Table.read(path)
    assert str(path) in str(error.value)


def test_summaries() -> None:
    rows = Table.concatenate(
        [
            table(
                "ada_1", (1, 2, 3), bps=[0.1, 0.3, math.nan], oracle_bps=[0.2, 0.4, math.nan],
                fraction_of_oracle=[0.5, 0.75, math.nan],
            ),
            table("ada_2", (1,), bps=[0.6], oracle_bps=[0.6], fraction_of_oracle=[1.0]),
            table("bea_1", (1,), bps=[1.0], oracle_bps=[math.nan]),
        ]
    )  # fmt: skip
    found = {(group.scope, group.name): group for group in summarize_table(rows)}
    assert list(found) == [
        ("session", "ada_1"), ("session", "ada_2"), ("session", "bea_1"), ("subject", "ada"),
        ("subject", "bea"), ("run", ""),
    ]  # fmt: skip
    ada, run = found["subject", "ada"], found["run", ""]
    assert ada.mean == pytest.approx((0.2 + 0.6) / 2) and ada.unit_mean == pytest.approx(1.0 / 3)
    assert run.mean == pytest.approx((0.2 + 0.6 + 1.0) / 3) and run.unit_mean == pytest.approx(0.5)
    assert (run.median, run.n, run.n_nan) == (pytest.approx(0.45), 4, 1)
    fraction = summarize_table(rows, "fraction_of_oracle")
    assert fraction[0].mean == pytest.approx(0.2 / 0.3) and fraction[0].median == pytest.approx(0.625)
    with pytest.raises(EvaluationError, match="'bits'"):
        summarize_table(rows, "bits")
    with pytest.raises(EvaluationError, match="'session'"):
        summarize_table(rows, "session")


def test_a_report_leads_with_the_figure_of_the_likelihood() -> None:
    counts, calcium = table(bps=[0.5, 0.7]), table("bea_1", likelihood="gamma", correlation=[0.2, 0.4])
    assert (counts.figure_of_merit, calcium.figure_of_merit) == ("bps", "correlation")
    assert summarize_table(calcium)[-1].mean == pytest.approx(0.3)
    assert Table.concatenate([counts, calcium]).figure_of_merit == "correlation"
    assert table(likelihood="of_an_absent_plugin").figure_of_merit == "correlation"


def test_ids_become_text_where_some_are() -> None:
    both = Table.concatenate([table(ids=(3, 8)), table("bea_1", ids=("u1", "u2"))])
    assert both["unit_id"].tolist() == ["3", "8", "u1", "u2"]
    assert both.where(both["session"] == "bea_1")["unit_id"].tolist() == ["u1", "u2"]


def test_figures_without_bins_are_refused() -> None:
    with pytest.raises(EvaluationError, match="ada_1"):
        Table.of_session("ada_1", "ada", (1,), "poisson", {"bps": np.zeros(1)})


def test_every_metric_says_what_it_is() -> None:
    reference = metrics_reference()
    for name, metric in metrics().items():
        assert metric.title and metric.formula and metric.direction in ("higher", "lower", "none")
        assert f"| `{name}` | {metric.title} |" in reference
    lines = reference.splitlines()
    assert len(lines) == 2 + len(metrics())
    row = next(line for line in lines if line.startswith("| `bps`"))
    assert "`poisson`" in row and "`negative_binomial`" in row and "gaussian" not in row
    assert next(line for line in lines if line.startswith("| `cc_norm`")).endswith("| all | repeats |")
