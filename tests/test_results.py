"""The script of the tables of results: every part is a model of its own, and the tables say what runs hold."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from neurotwin.config import load_model_config, parse_changes, recording_reads, unread_keys
from neurotwin.models import TwinModel
from training.flags import parse_arguments

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "experiments/results.py"))


def arguments_of(row):
    return parse_arguments([word.format(output="out", name="n", seed=3) for word in row.command[4:]])


def recipe_of(row):
    """What differs from the model file: its config with changes, and the flags that were given."""
    arguments = arguments_of(row)
    config = load_model_config(ROOT / arguments.model_config, changes=parse_changes(arguments.set or ()))
    return arguments, config, {name: getattr(arguments, name) for name in arguments.given - {"set"}}


@pytest.mark.parametrize("name", SCRIPT["TABLES"]["parts"])
def test_every_part_is_a_run_of_its_own_that_reads_all_of_its_keys(name, spec, clips):
    parts = SCRIPT["TABLES"]["parts"]
    arguments, config, given = recipe_of(parts[name])
    with recording_reads() as reads:
        twin = TwinModel(config, [spec(frame_shape=(1, 28, 28), n_lags=20, bin_rate=120.0, behavior_dim=11)])
    assert set(unread_keys(config, reads)) <= {"training"}
    rates = twin([clips(twin, generator=torch.Generator().manual_seed(1))])[0]
    assert rates.shape == (2, 4, 3) and rates.isfinite().all()
    assert ((config, given) == recipe_of(parts["whole"])[1:]) == (name == "whole")
    assert (arguments.seed, arguments.experiment_name, arguments.checkpoint_dir) == (3, "n_3", "out")


@pytest.mark.parametrize("table", SCRIPT["TABLES"])
def test_every_table_has_a_place_and_its_files_exist(table, tmp_path):
    page = ROOT / ("docs/ablations.md" if table == "parts" else "docs/results.md")
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    SCRIPT["write"](table, ["| a | 1 | 1 to 2 | 3 | 0.1 |"], copy)
    assert "| a | 1 | 1 to 2 | 3 | 0.1 |\n<!-- end -->" in copy.read_text()
    for row in SCRIPT["TABLES"][table].values():
        for word in row.command[1:]:
            assert "/" not in word or "{" in word or (ROOT / word).exists(), word
    with pytest.raises(ValueError, match="has no place for what belongs between <!-- other -->"):
        SCRIPT["write"]("other", [], copy)


def test_lines_are_medians_of_what_was_made_and_nothing_is_made_twice(tmp_path):
    """Three seeds and two figures by hand; a run that is there has its file read, and no command is run."""
    row = SCRIPT["Row"](title="a", command=("false",), figures=lambda run: {}, digits=2)
    for seed, (first, second) in enumerate([(0.2, 0.4), (0.5, 0.7), (0.3, 0.1)]):
        found = {"figures": {"one": first, "two": second}, "seconds": 60 * seed + 30}
        (tmp_path / f"x_{seed}.json").write_text(json.dumps(found))
        SCRIPT["train"]("x", row, seed, tmp_path)
    assert SCRIPT["lines"]("x", row, tmp_path) == [
        "| a: one | 0.30 | 0.20 to 0.50 | 3 | 1.5 |", "| a: two | 0.40 | 0.10 to 0.70 | 3 | 1.5 |",
    ]  # fmt: skip
    assert SCRIPT["lines"]("y", row, tmp_path) == []


def test_a_command_is_run_once_and_its_figures_and_time_are_kept(tmp_path):
    code = "import pathlib, sys; [hash(str(i)) for i in range(10**6)]; pathlib.Path(sys.argv[1]).mkdir()"
    command = (SCRIPT["sys"].executable, "-c", code, "{output}/{name}_{seed}")
    row = SCRIPT["Row"](title="a", command=command, figures=lambda run: {"": float(run.is_dir())})
    SCRIPT["train"]("made", row, 4, tmp_path)
    SCRIPT["train"]("made", row, 4, tmp_path)  # a second run would fail: the folder is there
    found = json.loads((tmp_path / "made_4.json").read_text())
    assert found["figures"] == {"": 1.0} and found["seconds"] > 0


def test_the_share_gives_each_session_one_vote_and_is_of_means(tmp_path):
    """Session a: (0.2 + 0.4) / (0.5 + 1.0) = 40%; session b: 90%."""
    run = tmp_path / "first_0" / "model"
    run.mkdir(parents=True)
    rows = ["a,ada,1,9,0.2,0.5", "a,ada,2,9,0.4,1.0", "b,bea,1,9,0.9,1.0"]
    (run / "units.csv").write_text("\n".join(["session,subject,unit_id,bins,bps,oracle_bps", *rows, ""]))
    (tmp_path / "first_0" / "failed").mkdir()
    assert SCRIPT["share"](run) == pytest.approx(65.0)
    assert SCRIPT["shares"](tmp_path / "first_0") == {"model": pytest.approx(65.0)}


def test_the_figure_has_all_units(tmp_path):
    (tmp_path / "units.csv").write_text(
        "session,subject,unit_id,bins,bps,oracle_bps\na,ada,1,9,0.2,0.5\nb,bea,1,9,0.4,1.0\n"
    )
    SCRIPT["draw"](tmp_path, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
