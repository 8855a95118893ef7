"""Experiments on models whose receptive fields are set by hand."""

import numpy as np
import pytest
import torch

from neurotwin.analysis.insilico import (
    drifting_grating,
    grating_tuning,
    most_exciting_image,
    receptive_field,
    responses,
)
from neurotwin.config import ModelConfig
from neurotwin.data.spec import SessionSpec
from neurotwin.models.twin import TwinModel

SIZE, RATE = 16, 60.0
KERNEL = torch.tensor([0.0, -1.5, 1.0])  # oldest first; an image that stays drives with the opposite sign


def gabor(direction, phase):
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    along = axis * np.cos(np.deg2rad(direction)) + axis[:, None] * np.sin(np.deg2rad(direction))
    envelope = torch.exp(-(axis**2 + axis[:, None] ** 2) / (2 * 3**2))
    weights = envelope * torch.cos(2 * torch.pi * 0.125 * along + phase)
    return weights - envelope * weights.sum() / envelope.sum()  # no response to grey


@pytest.fixture(scope="module")
def linear_twin():
    """Two rectified linear units, ids 5 and 8, that prefer drift at 0 and at 60 degrees."""
    config = ModelConfig(
        frontend={"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 1}},
        readout={"type": "pixels"},
        output_activation="relu",
    )
    spec = SessionSpec(
        name="ada_1", subject="ada", unit_ids=(5, 8), frame_shape=(1, SIZE, SIZE), bin_rate=RATE, n_lags=3,
        pixel_scale=(1 / 127, -1.0),
    )  # fmt: skip
    twin = TwinModel(config, [spec]).eval()
    with torch.no_grad():
        twin.frontend.weight.copy_(KERNEL.view(1, 1, 3, 1, 1))
        twin.readouts[0].features.copy_(
            torch.stack([gabor(0, 0.0), gabor(60, 1.0)]).reshape(twin.readouts[0].features.shape)
        )
        twin.readouts[0].bias.zero_()
    return twin


@pytest.fixture(scope="module")
def energy_twin():
    """One energy unit: the squares of two filters in quadrature, summed."""
    block = {
        "conv_params": {"kernel_size": [1, SIZE, SIZE]},
        "act_type": "square",
    }
    config = ModelConfig(
        convnet={"type": "vanilla", "params": {"channels": [2], "block_configs": [block]}},
        readout={"type": "pixels", "params": {"bias": False}},
        output_activation="relu",
    )
    spec = SessionSpec(
        name="ada_1", subject="ada", unit_ids=(3,), frame_shape=(1, SIZE, SIZE), bin_rate=RATE, n_lags=1,
        pixel_scale=(1 / 127, -1.0),
    )  # fmt: skip
    twin = TwinModel(config, [spec]).eval()
    with torch.no_grad():
        conv = twin.convnet.blocks[0].conv
        conv.weight.copy_(torch.stack([gabor(0, 0.0), gabor(0, torch.pi / 2)]).view(conv.weight.shape))
        conv.bias.zero_()
        twin.readouts[0].features.fill_(1.0)
    return twin


def test_receptive_field_of_a_linear_unit_is_its_filter(linear_twin):
    movies = drifting_grating((SIZE, SIZE), 3, direction=60, cycles_per_pixel=0.125, cycles_per_bin=0.1)[None]
    movies = torch.cat([movies, 254 - movies])  # the unit is silent in one of the two
    field = receptive_field(linear_twin, 8, session="ada_1", movies=movies)
    want = KERNEL.view(3, 1, 1, 1) * gabor(60, 1.0) / 127 / 2
    np.testing.assert_allclose(field, want, atol=1e-7)


def test_gratings_by_hand():
    movie = drifting_grating((8, 8), 5, direction=90, cycles_per_pixel=0.125, cycles_per_bin=0.125, contrast=0.5)
    assert movie.shape == (5, 8, 8) and movie.min() >= 63 and movie.max() <= 191
    np.testing.assert_allclose(movie[1, 1:], movie[0, :-1], atol=1e-4)  # drifts down, a pixel a bin
    np.testing.assert_allclose(movie[0, :, 0], movie[0, :, 5], atol=1e-4)


def test_a_rectified_linear_unit_is_simple(linear_twin):
    directions = np.arange(0, 360, 20.0)
    tuning = grating_tuning(
        linear_twin, session=0, directions=directions, cycles_per_pixel=0.125, temporal_hz=3.0
    )  # fmt: skip
    assert (directions[tuning.preferred] % 180).tolist() == [0, 60]
    # Half a sinusoid of amplitude a: mean a/π, first harmonic a/2.
    np.testing.assert_allclose(tuning.modulation_ratio, np.pi / 2, rtol=0.02)
    assert (tuning.orientation_selectivity > 0.5).all()
    # The amplitude from the filters: the kernel at 3 Hz times the Gabor at the grating's frequency.
    omega = 2 * np.pi * 3 / RATE
    gain = abs(sum(float(w) * np.exp(1j * omega * n) for n, w in enumerate(KERNEL)))
    x = np.arange(SIZE)
    amplitude = gain * abs((gabor(0, 0.0).numpy() * np.exp(2j * np.pi * 0.125 * x)).sum()) * RATE
    assert tuning.f0[0, 0] == pytest.approx(amplitude / np.pi, rel=0.02)


def test_an_energy_unit_is_complex(energy_twin):
    tuning = grating_tuning(energy_twin, session=0, directions=[0, 45, 90], cycles_per_pixel=0.125, temporal_hz=4.0)
    assert tuning.preferred.tolist() == [0] and tuning.modulation_ratio[0] < 0.1
    assert np.abs(receptive_field(energy_twin, 3, session=0)).max() < 1e-6  # flat at grey


def test_the_most_exciting_image_of_a_linear_unit_is_its_filter(linear_twin):
    image = most_exciting_image(linear_twin, 5, session=0, contrast=0.1, frames_shown=1, n_steps=60, seed=1)
    assert image.shape == (1, SIZE, SIZE)
    assert np.corrcoef(image.ravel(), gabor(0, 0.0).ravel())[0, 1] > 0.99
    assert np.sqrt(((image - 127) ** 2).mean()) / 127 == pytest.approx(0.1, rel=0.01)


def test_the_most_exciting_image_beats_noise_and_stays_in_range(energy_twin):
    image = most_exciting_image(energy_twin, 3, session=0, contrast=0.5, n_steps=50)
    assert image.min() >= 0 and image.max() <= 254
    noise = 127 + 0.5 * 127 * np.random.default_rng(0).standard_normal((50, 1, 1, SIZE, SIZE))
    shown = [torch.tensor(x, dtype=torch.float32) for x in (noise, image[None, None])]
    driven = [responses(energy_twin, movies, session=0).max().item() for movies in shown]
    assert driven[1] > 3 * driven[0]


def test_units_are_named_by_id(linear_twin):
    with pytest.raises(ValueError, match="has no unit 0"):
        receptive_field(linear_twin, 0, session=0)
