"""Figures of a model as it learns: kernels, what readouts look at, predictions."""

import logging
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor

from neurotwin.analysis import plots
from neurotwin.analysis.evaluate import score_session
from neurotwin.clip import Sample
from neurotwin.data.clips import stream
from neurotwin.data.prepare import Prepared
from neurotwin.data.session import SPLITS
from neurotwin.models.layers import Kernel
from neurotwin.models.twin import TwinModel

__all__ = ["ModelLogging"]

logger = logging.getLogger(__name__)


class ModelLogging(Callback):
    """Figures of the model as it learns: PNG files in a folder, and images in TensorBoard and W&B.

    Parameters
    ----------
    folder
        Where the files go, as ``NAME_EPOCH.png``.
    fast_interval
        Epochs between ``kernels`` (temporal kernels of the first layer that has any) and ``readouts`` (spatial maps).
    slow_interval
        Epochs between ``predictions``: recorded and predicted rates of the units with most spikes, in the longest
        validation stretch of the session; and ``psth``, of the one with most, where validation holds repeats.
    session
        Index of the session that readouts and predictions show.
    max_units
        Units shown in ``predictions``.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fast_interval: int = 5,
        slow_interval: int = 10,
        session: int = 0,
        max_units: int = 4,
    ) -> None:
        if fast_interval < 1 or slow_interval < 1:
            raise ValueError(f"log intervals are epochs, at least 1; not {fast_interval} and {slow_interval}")
        self.folder, self.session, self.max_units = Path(folder), session, max_units
        self.fast_interval, self.slow_interval = fast_interval, slow_interval

    @rank_zero_only
    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what is due."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        twin, epoch = pl_module.twin, trainer.current_epoch + 1
        spec = twin.sessions[self.session]
        figures = {}
        if epoch % self.fast_interval == 0:
            kernels, maps = _temporal_kernels(twin), twin.per_session[self.session].readout.spatial_maps()
            if kernels is not None:
                figures["kernels"] = plots.temporal_kernels(
                    kernels.float().cpu().numpy(), bin_rate=spec.bin_rate, title=f"temporal kernels, epoch {epoch}"
                )
            if maps is not None:
                labels = [str(unit_id) for unit_id in spec.unit_ids]
                figures["readouts"] = plots.readout_maps(
                    maps.float().cpu().numpy(), labels=labels, title=f"readouts of {spec.name}, epoch {epoch}"
                )
        if epoch % self.slow_interval == 0:
            prepared = trainer.datamodule.sessions[self.session]
            sample = next(stream(prepared, "val", context=twin.context), None)
            if sample is None:
                logger.warning("%s has no validation bins: there are no predictions to draw", spec.name)
            else:
                sample = sample.of_session(self.session).to(pl_module.device)
                figures["predictions"] = self._predictions(twin, sample, epoch)
                if (psth := self._psth(twin, prepared, epoch)) is not None:
                    figures["psth"] = psth
        for name, figure in figures.items():
            path = self.folder / f"{name}_{epoch:04d}.png"
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(plots.png(figure))
            for tracker in trainer.loggers:
                if isinstance(tracker, TensorBoardLogger):
                    tracker.experiment.add_figure(name, figure, trainer.global_step)
                elif isinstance(tracker, WandbLogger):
                    tracker.log_image(name, [str(path)], step=trainer.global_step)

    def _predictions(self, twin: TwinModel, sample: Sample, epoch: int) -> Figure:
        rates, target = twin([sample.clip])[0][0].double().cpu().numpy(), sample.target
        responses = target.responses[0].double().masked_fill(~target.mask[0], torch.nan)
        responses = (responses if target.exposure is None else responses / target.exposure[0]).cpu().numpy()
        units = np.argsort(-np.nansum(responses, axis=0), kind="stable")[: self.max_units]
        spec = twin.sessions[self.session]
        labels = [f"{spec.name}, unit {spec.unit_ids[unit]}" for unit in units]
        title = f"validation of {spec.name}, epoch {epoch}"
        return plots.traces(responses[:, units], rates[:, units], bin_rate=spec.bin_rate, labels=labels, title=title)

    def _psth(self, twin: TwinModel, prepared: Prepared, epoch: int) -> Figure | None:
        """Repeats of the unit that responds most to what is repeated in validation; None where nothing is."""
        if not ((prepared.split == SPLITS.index("val")) & (prepared.repeat_id >= 0)).any():
            return None
        repeated = score_session(twin, prepared, self.session, "val").repeated()
        if repeated is None or len(repeated[0]) < 2:
            return None
        responses, rates = repeated
        unit, spec = int(np.nansum(responses, axis=(0, 1)).argmax()), twin.sessions[self.session]
        counts = np.maximum((~np.isnan(rates[:, :, unit])).sum(0), 1)
        return plots.psth(
            responses[:, :, unit], np.nansum(rates[:, :, unit], axis=0) / counts, bin_rate=spec.bin_rate,
            label=f"{spec.name}, unit {spec.unit_ids[unit]}: repeats in validation, epoch {epoch}",
        )  # fmt: skip


def _temporal_kernels(twin: TwinModel) -> Tensor | None:
    """(N, T) temporal kernels of the first convolution that spans time, each at the pixel where it is strongest."""
    for module in twin.modules():
        if isinstance(module, Kernel) and module.kernel().ndim == 5 and module.kernel().shape[2] > 1:
            profiles = module.kernel().movedim(2, -1).flatten(1, -2)  # (N, inputs and pixels, T)
            strongest = profiles.square().sum(dim=-1).argmax(dim=1)
            return profiles[torch.arange(len(profiles)), strongest]
    return None
