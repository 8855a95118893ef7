"""The command that makes an ensemble, and every other command on what it made."""

import csv

import numpy as np
import pytest

from neurotwin.cli import main
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import prepare
from neurotwin.data.session import Session
from neurotwin.models import TwinModel


@pytest.fixture
def made(tmp_path, capsys):
    """Two saved models of one recording, and their ensemble."""
    rng, n_bins = np.random.default_rng(0), 600
    session = Session(
        name="ada_1", stimulus=rng.integers(0, 256, (n_bins, 8, 8)).astype(np.uint8), bin_rate=60.0,
        responses=rng.poisson(0.7, (n_bins, 3)), trial=np.arange(n_bins) // 30,
    )  # fmt: skip
    path = session.save(tmp_path / "ada_1.safetensors")
    (prepared,) = prepare([DatasetConfig(session="ada_1", path=str(path), keys_lags={"stim": "0..4"}, test_split=0.1)])
    members = []
    for size in (3, 4):
        params = {"kernel_size": size, "num_channels": 2, "init_type": "random"}
        config = ModelConfig(frontend={"type": "learnable_temporal", "params": params})
        members.append(TwinModel(config, [prepared.spec]).save(tmp_path / f"member{size}.safetensors"))
    output = tmp_path / "both.safetensors"
    assert main(["ensemble", *map(str, members), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    return output


def test_every_command_takes_an_ensemble(made, capsys):
    assert main(["evaluate", str(made)]) == 0
    assert main(["evaluate", str(made), "--split", "test"]) == 0
    with open(made.with_suffix(".val.csv"), newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    options = ["--options", "n_movies=4", "recorded=false", "n_filters=1"]
    folder = made.with_suffix(".report") / "experiments" / "receptive_field"
    assert main(["experiment", "receptive_field", str(made), "--output", str(folder), *options]) == 0
    assert (folder / "disagreement.csv").is_file()
    page = made.with_suffix(".html")
    capsys.readouterr()
    assert main(["report", str(made), "--html", str(page)]) == 0
    assert "both" in capsys.readouterr().out and "receptive" in page.read_text()
    assert (made.with_suffix(".report") / "units_test.csv").is_file()
    datasets = made.with_name("data.yaml")
    datasets.write_text("session_dir: .\nsessions: [ada_1]\ndata_dir: .\nkeys_lags: {stim: [0..4]}\n")
    made.with_name("ada_1.yaml").write_text("{}\n")
    assert main(["audit", str(datasets), "--checkpoint", str(made)]) in (0, 1)
    assert main(["compare", str(made.with_suffix(".val.csv")), str(made.with_suffix(".val.csv"))]) == 0


def test_a_report_on_a_model_without_a_table_says_how_to_get_one(made, caplog):
    with caplog.at_level("INFO"):
        assert main(["report", str(made)]) == 0
    assert f"`neurotwin evaluate {made}` writes it" in caplog.text


def test_refusals_are_one_line(made, capsys, tmp_path):
    assert main(["ensemble", str(made), "--output", str(tmp_path / "x.ckpt")]) == 2
    assert "name it x.safetensors" in capsys.readouterr().err
    assert main(["ensemble", str(tmp_path / "absent"), "--output", str(tmp_path / "x.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "x.safetensors").exists()
