"""What a model and its sessions are, before any training: sizes, receptive field, cost, data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..clip import Clip
from ..data.prepare import Prepared
from ..data.session import SPLITS
from ..models.blocks import Block
from ..models.network import CORE_PARTS, evaluating
from ..models.parameters import SESSION_PARTS, describe_parameters
from ..models.readout import half_size, starts
from ..models.stages import Layer
from ..models.twin import TwinModel
from .report import text_table

__all__ = ["Anatomy", "inspect_model", "inspect_text", "session_rows"]


@dataclass(frozen=True)
class Anatomy:
    """What can be said of a model without training it.

    Attributes
    ----------
    layers
        Name, output shape for one predicted bin (C, T, H, W; a readout's is T, U) and number of parameters, in the
        order of computation, with the adapter and readout of the first session.
    parameters
        Number of parameters of each part, those of all sessions together.
    receptive_field
        Frames, rows and columns of pixels that one feature depends on, before memory and after the adapter. Norms,
        whose statistics are those of a whole frame, are left out.
    operations
        Multiplications and additions for one more predicted bin of one session: products and convolutions, forward
        pass only.
    """

    layers: list[tuple[str, tuple[int, ...], int]]
    parameters: dict[str, int]
    receptive_field: tuple[int, int, int]
    operations: int


def inspect_model(twin: TwinModel) -> Anatomy:
    """Run a model once on noise, and write down what it is."""
    with evaluating(twin):
        layers = _layers(twin)
        counts = []
        for length in (8, 16):
            with FlopCounterMode(display=False) as counter:
                twin([_noise(twin, length)])
            counts.append(counter.get_total_flops())
        parameters = dict.fromkeys([*CORE_PARTS, *SESSION_PARTS.values()], 0)
        for info in describe_parameters(twin):
            parameters[SESSION_PARTS.get(info.part, info.part)] += info.parameter.numel()
        return Anatomy(
            layers=layers,
            parameters=parameters,
            receptive_field=(twin.receptive_field, *_spatial_extent(twin)),
            # The difference, so that the frames before the first predicted bin do not count.
            operations=(counts[1] - counts[0]) // 8,
        )


def session_rows(sessions: Sequence[Prepared]) -> list[dict[str, str]]:
    """One row a session, the values as they are shown: units, bins, valid share, splits, rates in Hz."""
    rows = []
    for prepared in sessions:
        spec = prepared.spec
        exposure = 1.0 if prepared.exposure is None else np.asarray(prepared.exposure, np.float64)[:, None]
        counted = prepared.mask.sum(axis=0)
        presented = np.maximum((prepared.mask * exposure).sum(axis=0), 1e-9)
        rates = np.einsum("tu,tu->u", prepared.responses, prepared.mask, dtype=np.float64) / presented * spec.bin_rate
        rates = rates[counted > 0]
        valid = prepared.n_valid > 0
        row = {
            "session": prepared.name,
            "subject": spec.subject,
            "units": str(prepared.n_units),
            "silent": str(prepared.n_units - int((rates > 0).sum())),
            "bins": f"{prepared.n_bins:,}",
            "minutes": f"{prepared.n_bins / spec.bin_rate / 60:.1f}",
            "valid": f"{prepared.mask.mean():.0%}",
        }
        for code, name in enumerate(SPLITS):
            row[name] = f"{np.count_nonzero(valid & (prepared.split == code)):,}"
        row["median Hz"] = f"{np.median(rates):.2f}" if rates.size else "NaN"
        row["range Hz"] = f"{rates.min():.2f} to {rates.max():.2f}" if rates.size else "NaN"
        rows.append(row | {"behaviour": str(spec.behavior_dim), "frame": "x".join(map(str, spec.frame_shape))})
    return rows


def inspect_text(twin: TwinModel, sessions: Sequence[Prepared], *, notices: Sequence[str] = ()) -> str:
    """Model and sessions, for a person to read.

    Parameters
    ----------
    twin, sessions
        The model and its sessions.
    notices
        What of the files was understood otherwise than they are written, one line a file.
    """
    anatomy = inspect_model(twin)
    spec = twin.sessions[0]
    frames, rows, columns = anatomy.receptive_field
    layers = [
        {"layer": name, "output": " x ".join(map(str, shape)), "parameters": f"{count:,}"}
        for name, shape, count in anatomy.layers
    ]
    parts = [{"part": part, "parameters": f"{count:,}"} for part, count in anatomy.parameters.items() if count]
    parts.append({"part": "all", "parameters": f"{sum(anatomy.parameters.values()):,}"})
    facts = [
        f"receptive field: {frames} bins ({frames / spec.bin_rate * 1000:.0f} ms) of the {spec.n_lags} given, "
        f"{rows} x {columns} pixels" + (", and a memory beyond" if twin.is_recurrent else ""),
        f"operations per predicted bin: {anatomy.operations / 1e6:,.2f} million (forward, one session)",
        f"behaviour: {spec.behavior_dim} variables, " + ("used" if twin.takes_behavior else "not used"),
        *_positions(twin),
    ]
    parts = [text_table(layers), text_table(parts), "\n".join(facts), text_table(session_rows(sessions))]
    return "\n\n".join([*parts, *(["\n".join(["understood otherwise than written:", *notices])] if notices else [])])


def _positions(twin: TwinModel) -> list[str]:
    """Where readouts of the first session look at the start, in feature pixels and as a share of half the map."""
    maps, part = twin.recurrent.outputs, twin.sessions[0].config.readout or twin.config.readout
    lines, half = [], half_size(maps)
    for name in ("initial_std", "initial_mean_scale"):
        if name in type(part.params).model_fields:
            pixels = dict(zip(("initial_std", "initial_mean_scale"), starts(part.params, maps), strict=True))[name]
            share = f"{pixels / half:.3g} of half the map of {maps.height} x {maps.width}"
            lines.append(f"readout.params.{name}: {pixels:.3g} feature pixels, {share}")
    return lines


def _noise(twin: TwinModel, length: int) -> Clip:
    spec = twin.sessions[0]
    generator = torch.Generator().manual_seed(0)
    frames = twin.context + length
    channels, height, width = spec.frame_shape
    behavior = torch.randn(1, frames, spec.behavior_dim, generator=generator) if spec.behavior_dim else None
    shown = torch.randint(0, 256, (1, channels, frames, height, width), dtype=torch.uint8, generator=generator)
    history = torch.zeros(1, length + spec.n_history, spec.n_units) if spec.n_history else None
    return Clip(0, length, shown, behavior=behavior, history=history).to(twin.like.device)


def _layers(twin: TwinModel) -> list[tuple[str, tuple[int, ...], int]]:
    """Stages that hold no other stage, in the order in which they are run."""
    layers: list[tuple[str, tuple[int, ...], int]] = []
    handles = []

    def record(name: str):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            output = output[0] if isinstance(output, tuple) else output
            layers.append((name, tuple(output.shape[1:]), _count(module)))

        return hook

    own = {f"per_session.0.{part}" for part in ("readout", "shifter", "history_encoder")}
    for name, module in twin.named_modules():
        inner = any(isinstance(child, Layer) for child in module.modules() if child is not module)
        if (isinstance(module, Layer) and not inner) or name in own:
            handles.append(module.register_forward_hook(record(name)))
    try:
        with torch.no_grad():
            twin([_noise(twin, 1)])
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _spatial_extent(twin: TwinModel) -> tuple[int, int]:
    """Rows and columns of the frame on which the middle feature depends."""
    if twin.config.initial_input_channels == 0:
        return 0, 0
    maps = twin.per_session[0].adapter.outputs
    parameter = twin.like
    reached = torch.zeros(maps.height, maps.width, dtype=torch.bool)
    norms = [block.norm for block in twin.modules() if isinstance(block, Block) and "norm" in block.order]
    passing = [norm.register_forward_hook(lambda module, inputs, output: inputs[0]) for norm in norms]
    for seed in range(3):  # where rectifiers are silent for one picture, they are not for another
        generator = torch.Generator().manual_seed(seed)
        shape = (1, maps.channels, twin.receptive_field, maps.height, maps.width)
        x = torch.randn(shape, generator=generator).to(parameter).requires_grad_()
        features = twin.convnet(twin.frontend(x)[0])[0][0, :, -1]
        features[:, features.shape[1] // 2, features.shape[2] // 2].square().sum().backward()
        reached |= (x.grad != 0).any(dim=(0, 1, 2)).cpu()
    for handle in passing:
        handle.remove()
    twin.zero_grad(set_to_none=True)
    return int(reached.any(dim=1).sum()), int(reached.any(dim=0).sum())


def _count(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
