"""Training on sessions that lie elsewhere: as on local ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from neurotwin.cli import main
from neurotwin.metrics.table import Table
from neurotwin.models import load_twin
from training import train_ddp_multidataset as script

fsspec = pytest.importorskip("fsspec", reason="pip install 'neurotwin[remote]'")
ROOT = Path(__file__).parents[2]
MODEL = {
    "convnet": {"type": "vanilla", "params": {"channels": [3], "block_configs": [{"conv_params": {"kernel_size": 3}}]}},
    "readout": {"type": "gaussian"},
}
DATA = {"keys_lags": {"stim": "0..6"}, "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}}}


@pytest.fixture
def lab(tmp_path, factory, monkeypatch):
    """Flags of a run of two steps on a session, whose file is at `data/ada_demo1.safetensors`."""
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    factory.write_session(tmp_path / "data", "ada_demo1")  # a name that would be simulated if it were not found
    (tmp_path / "ada_demo1.yaml").write_text(yaml.safe_dump(DATA))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL))
    flags = ["--model_config", "model.yaml", "--dataset_configs_path", "ada_demo1.yaml", "--steps_per_epoch", "2"]
    flags += ["--max_epochs", "1", "--accelerator", "cpu", "--logger", "csv", "--checkpoint_dir", "runs"]
    return [*flags, "--clip_len", "8"]


def weights(run: str) -> dict:
    return torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_two_steps_on_a_session_elsewhere_are_those_on_the_local_one(lab, tmp_path, handlers):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/lab/ada_demo1.safetensors", (tmp_path / "data/ada_demo1.safetensors").read_bytes())
    assert script.main([*lab, "--data_dir", "memory://lab", "--experiment_name", "there"]) == 0
    assert script.main([*lab, "--data_dir", "data", "--experiment_name", "here"]) == 0
    there, here = weights("there"), weights("here")
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=0, atol=0)
    assert (tmp_path / "runs/there/units.csv").read_text() == (tmp_path / "runs/here/units.csv").read_text()
    assert "fetched memory://lab/ada_demo1.safetensors" in (tmp_path / "runs/there/train.log").read_text()

    memory.pipe_file("/lab/best.ckpt", (tmp_path / "runs/there/checkpoints/best.ckpt").read_bytes())
    twin = load_twin("memory://lab/best.ckpt")
    assert twin.sessions[0].config.path == "memory://lab/ada_demo1.safetensors"
    rates = [twin.predict(name) for name in ("ada_demo1", "memory://lab/ada_demo1.safetensors")]
    torch.testing.assert_close(rates[0].rates, rates[1].rates, equal_nan=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_take_urls(lab, tmp_path, capsys, caplog, handlers):
    data = (tmp_path / "data").as_uri()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "neurotwin", "train", *lab, "--data_dir", data, "--experiment_name", "there"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fetched file:///") == 1 and Table.read("runs/there/units.csv")["session"].size == 4

    assert main(["inspect", f"{data}/ada_demo1.safetensors"]) == 0
    assert "240" in capsys.readouterr().out
    assert main(["evaluate", "runs/there"]) == 0
    assert not [message for message in caplog.messages if message.startswith("fetched")]
    assert main(["evaluate", "runs/there", "--data_dir", "file:///nowhere"]) == 2
    line = "neurotwin: file:///nowhere/ada_demo1.safetensors: no such file there; correct path or data_dir"
    assert capsys.readouterr().err.splitlines()[-1] == line
