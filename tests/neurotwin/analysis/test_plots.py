"""Figures hold the data they were given, in the units that their axes name."""

import numpy as np
import pytest

from neurotwin.analysis import plots


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_traces_are_in_hz_and_smoothing_keeps_the_mean():
    observed, predicted = np.full((40, 2), 0.5), np.full((40, 2), 0.25)
    figure = plots.traces(observed, predicted, bin_rate=100.0, labels=["3", "7"], smooth=0.02)
    drawn = lines(figure.axes[1])
    np.testing.assert_allclose(drawn["recorded"][:, 1], 50)
    np.testing.assert_allclose(drawn["predicted"][:, 1], 25)
    assert drawn["predicted"][-1, 0] == pytest.approx(0.39)


def test_psth_averages_the_repeats_there_are():
    responses = np.array([[1.0, 0.0, 2.0], [0.0, np.nan, 2.0]])
    figure = plots.psth(responses, np.array([0.5, 0.0, 2.0]), bin_rate=10.0)
    np.testing.assert_allclose(lines(figure.axes[1])["mean of repeats"][:, 1], [5, 0, 20])
    raster = figure.axes[0].get_lines()[0].get_xydata()
    np.testing.assert_allclose(raster, [[0, 1], [0.2, 1], [0.2, 2]])


def test_kernels_end_at_the_response():
    figure = plots.temporal_kernels(np.array([[1.0, 2.0, 3.0]]), bin_rate=100.0)
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_xydata(), [[-20, 1], [-10, 2], [0, 3]])


def test_maps_have_a_scale_each_and_tuning_a_line_each():
    maps = np.stack([np.eye(4), -3 * np.eye(4), np.zeros((4, 4))])
    figure = plots.readout_maps(maps, labels=["1", "2", "3"], columns=2)
    images = [axes.get_images()[0] for axes in figure.axes if axes.get_images()]
    assert [image.get_clim() for image in images] == [(-1, 1), (-3, 3), (-1, 1)]
    tuning = plots.tuning_curve(np.array([0.0, 90.0]), np.array([[1.0, 2.0], [3.0, 4.0]]), labels=["a", "b"])
    np.testing.assert_array_equal(lines(tuning.axes[0])["b"], [[0, 2], [90, 4]])


def test_png():
    assert plots.png(plots.temporal_kernels(np.ones((1, 3)), bin_rate=1.0)).startswith(b"\x89PNG")
