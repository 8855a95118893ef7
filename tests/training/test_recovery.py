"""The model finds what made the data: an LN model recovers the filters of simulated LN units."""

import lightning.pytorch as pl
import numpy as np
import torch

from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.simulate import simulate_linear_session
from training import MultiDatasetDM, MultiDatasetModel


def test_an_ln_model_recovers_the_filters_of_ln_units(tmp_path):
    session, filters = simulate_linear_session(n_units=3, n_bins=20_000, size=10)
    n_lags = filters.shape[1]
    config = DatasetConfig.model_validate(
        {
            "session": session.name,
            "path": str(session.save(tmp_path / f"{session.name}.safetensors")),
            "keys_lags": {"stim": list(range(n_lags))},
        }
    )
    model_config = ModelConfig.model_validate(
        {
            "frontend": {"type": "learnable_temporal", "params": {"kernel_size": n_lags, "num_channels": 4}},
            "readout": {"type": "pixels"},
        }
    )
    data = MultiDatasetDM([config], batch_size=1000, clip_len=100, steps_per_epoch=60)
    model = MultiDatasetModel(
        model_config, data.specs, statistics=data.statistics(), learning_rate=1e-2, lr_scheduler="cosine",
        warmup_epochs=0,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data)
    with torch.no_grad():
        kernels = model.twin.frontend.kernel()[:, 0, :, 0, 0]  # (channels, lags), oldest first
        found = torch.einsum("cl,uchw->ulhw", kernels, model.twin.per_session[0].readout.features).numpy()
    for unit in range(3):
        assert np.corrcoef(found[unit].ravel(), filters[unit].ravel())[0, 1] > 0.9
