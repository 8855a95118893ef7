"""The script of the ablation table: every variant is a model of its own, and the table says what runs hold."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from neurotwin.config import ModelConfig, recording_reads, unread_keys
from neurotwin.models import TwinModel

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "experiments/ablations.py"))


@pytest.mark.parametrize("name", SCRIPT["VARIANTS"])
def test_every_variant_is_a_model_that_reads_all_of_its_keys(name, spec, clips):
    config = ModelConfig.model_validate(SCRIPT["variant"](SCRIPT["VARIANTS"][name][1]))
    with recording_reads() as reads:
        twin = TwinModel(config, [spec(frame_shape=(1, 28, 28), n_lags=20, bin_rate=120.0, behavior_dim=11)])
    assert not unread_keys(config, reads)
    rates = twin([clips(twin, generator=torch.Generator().manual_seed(1))])[0]
    assert rates.shape == (2, 4, 3) and rates.isfinite().all()
    base = ModelConfig.model_validate(SCRIPT["variant"]({}))
    assert (config == base) == (name == "as_shipped")


def test_a_line_says_what_the_runs_of_a_variant_hold(tmp_path):
    """Two seeds, two units: means by hand; the oracle's share is of means, and not a mean of shares."""
    for seed, (first, second) in enumerate([(0.2, 0.4), (0.5, 0.7)]):
        run = tmp_path / f"as_shipped_{seed}"
        run.mkdir()
        (run / "units.csv").write_text(f"unit_id,bps,oracle_bps\n1,{first},0.5\n2,{second},1.0\n")
        (run / "metrics.csv").write_text("epoch,val_bps\n1,0.1\n2,0.3\n3,0.4\n4,0.5\n")
        (run / "seconds.json").write_text(json.dumps(100 * (seed + 1)))
        (run / "run.json").write_text('{"parameters": 12345}')
        assert SCRIPT["done"](run)
    cells = [cell.strip() for cell in SCRIPT["row"]("as_shipped", [0, 1], tmp_path).strip("|").split("|")]
    assert cells[1:] == ["12,345", "0.300", "0.450", "60.0% (40.0 / 80.0)", "150"]
    assert SCRIPT["row"]("as_shipped", [1], tmp_path).split("|")[5].strip() == "80.0%"
    assert not SCRIPT["done"](tmp_path / "wide_0")
