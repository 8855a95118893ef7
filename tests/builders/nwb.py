"""Small NWB 2 files, written by pynwb in the layouts of labs and archives."""

import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

__all__ = ["allen", "build", "calcium", "demo", "ibl", "indexed", "lab", "movie", "writing"]

EYE = np.linspace(1, 3.6, 12)
LICKS = np.array([1.05, 1.07, 1.2, 2.01, 3.97, 9.0])
SPIKES = [
    np.array([1.05, 1.06, 1.31, 2.25, 3.99, 4.01]),
    np.array([3.5, 1.0, 1.099, 2.999, 0.5]),
]  # the second unsorted


@contextmanager
def writing(path: Path, subject: str = "ada"):
    """Yield pynwb and an NWBFile that is written to `path` at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pynwb's own dependencies
        import pynwb

        file = pynwb.NWBFile("test", "id", datetime(2026, 1, 1, tzinfo=UTC), lab="lab of tests")
        file.subject = pynwb.file.Subject(subject_id=subject, species="Macaca mulatta")
        yield pynwb, file
        with pynwb.NWBHDF5IO(path, "w") as out:
            out.write(file)


def movie(n: int = 30, seed: int = 0, shape: tuple[int, ...] = (4, 5)) -> np.ndarray:
    """(n, H, W) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def lab(
    path: Path, *, data: np.ndarray | None = None, times: np.ndarray | None = None, trials: bool = True,
    spikes: list[np.ndarray] | None = None, place: str = "stimulus", kind: str = "ImageSeries", external: bool = False,
    obs: bool = False,
) -> None:  # fmt: skip
    """A movie of 30 frames at 10 Hz from 1 s, two units, two trials, running, gaze, licks and invalid times."""
    data = movie() if data is None else data
    with writing(path) as (pynwb, file):
        when = {"starting_time": 1.0, "rate": 10.0} if times is None else {"timestamps": times}
        if external:
            series = pynwb.image.ImageSeries(
                "movie",
                external_file=["movie.avi"],
                format="external",
                starting_frame=[0],
                unit="n.a.",
                timestamps=1 + np.arange(30) / 10,
            )
        elif kind == "TimeSeries":
            series = pynwb.TimeSeries("movie", data=data, unit="px", **when)
        elif kind == "OpticalSeries":
            series = pynwb.image.OpticalSeries(
                "movie", data=data, unit="n.a.", distance=0.5, field_of_view=[0.3, 0.2], orientation="up", **when
            )
        else:
            series = pynwb.image.ImageSeries("movie", data=data, unit="n.a.", **when)
        if place == "stimulus":
            file.add_stimulus(series)
        elif place == "stimulus_template":
            file.add_stimulus_template(series)
        else:
            file.create_processing_module(place, "stimuli").add(series)
        file.add_unit_column("quality", "of the sorting")
        file.add_unit_column("presence_ratio", "part of the session")
        for number, unit in enumerate(spikes or SPIKES):
            more = {"obs_intervals": [[0.0, 3.0 + number]]} if obs else {}
            file.add_unit(spike_times=unit, id=3 + 6 * number, quality=("good", "mua")[number % 2],
                          presence_ratio=(0.95, 0.5)[number % 2], **more)  # fmt: skip
        if trials:
            file.add_trial(start_time=1.0, stop_time=2.0)
            file.add_trial(start_time=2.5, stop_time=4.0)
        _behavior(pynwb, file)
        file.add_invalid_time_interval(start_time=1.32, stop_time=1.41)


def _behavior(pynwb, file) -> None:
    module = file.create_processing_module("behavior", "behaviour")
    module.add(pynwb.TimeSeries("running", data=np.arange(50.0), unit="cm/s", starting_time=0.0, rate=10.0))
    gaze = pynwb.behavior.SpatialSeries(
        "gaze", data=np.stack([EYE, -EYE], axis=1), timestamps=EYE, reference_frame="screen", conversion=2.0
    )
    module.add(pynwb.behavior.EyeTracking(spatial_series=gaze, name="eye"))
    licking = file.create_processing_module("licking", "licks")
    licking.add(pynwb.TimeSeries("licks", data=np.arange(len(LICKS)), unit="n.a.", timestamps=LICKS))
    reward = pynwb.misc.IntervalSeries("reward", data=[1, -1], timestamps=[1.25, 1.5])
    licking.add(pynwb.behavior.BehavioralEpochs(interval_series=reward, name="epochs"))
    words = pynwb.misc.AnnotationSeries("words", data=["go", "stop"], timestamps=[1.0, 2.0])
    module.add(words)


MOVIE_ROWS = [(2.0 + 0.1 * n, n % 4, n // 4) for n in range(8)] + [(5.0 + 0.1 * n, n, 2) for n in range(4)]
IMAGE_ROWS = [(10.0 + 0.25 * n, frame) for n, frame in enumerate([2, 0, -1, 1, 2, -1, 0])]
QC = [("good", 0.1, 0.01, 0.99), ("noise", 0.1, 0.01, 0.99), ("good", 0.9, 0.01, 0.99), ("good", 0.1, np.nan, 0.99),
      ("good", 0.1, 0.01, 0.9), ("good", 0.4, 0.09, 0.91)]  # fmt: skip


def allen(path: Path, *, templates: bool = True, images: bool = True, sizes: bool = False) -> None:
    """Allen's Neuropixels layout: tables of presentations, templates whose times are NaN, units with quality columns.

    A movie of four frames at 10 Hz is shown twice in one block and once in another; three images for 250 ms each, with
    blank sweeps (frame −1).
    """
    with writing(path, subject="699733573") as (pynwb, file):
        names = {"natural_movie_one": movie(4, 1), "natural_scenes": movie(3, 2, (6, 5) if sizes else (4, 5))}
        for name, data in names.items() if templates else ():
            file.add_stimulus_template(
                pynwb.image.ImageSeries(name, data=data, unit="NA", timestamps=np.full(len(data), np.nan))
            )
        table = pynwb.epoch.TimeIntervals("natural_movie_one_presentations")
        for column in ("stimulus_name", "frame", "stimulus_block", "repeat"):
            table.add_column(column, column)
        for start, frame, repeat in MOVIE_ROWS:
            table.add_interval(start_time=start, stop_time=start + 0.1, stimulus_name="natural_movie_one",
                               frame=float(frame), stimulus_block=repeat // 2, repeat=repeat)  # fmt: skip
        file.add_time_intervals(table)
        if images:
            table = pynwb.epoch.TimeIntervals("natural_scenes_presentations")
            table.add_column("frame", "frame")
            for start, frame in IMAGE_ROWS:
                table.add_interval(start_time=start, stop_time=start + 0.25, frame=float(frame))
            file.add_time_intervals(table)
        gratings = pynwb.epoch.TimeIntervals("drifting_gratings_presentations")
        gratings.add_column("orientation", "degrees")
        gratings.add_interval(start_time=20.0, stop_time=22.0, orientation=45.0)
        file.add_time_intervals(gratings)
        _probe(file)
        running = file.create_processing_module("running", "running")
        time = np.arange(0, 30, 0.05)
        running.add(pynwb.TimeSeries("running_speed", data=3 * time, unit="cm/s", timestamps=time))
        stimulus = file.create_processing_module("stimulus", "clock")
        stimulus.add(pynwb.TimeSeries("timestamps", data=time, unit="s", timestamps=time))
        eye = file.create_processing_module("eye_tracking", "ellipses")
        columns = [pynwb.core.VectorData(name=name, description=name, data=values)
                   for name, values in (("width", time**2), ("timestamps", time))]  # fmt: skip
        eye.add(pynwb.core.DynamicTable(name="pupil_ellipse_fits", description="fits", columns=columns))


def _probe(file) -> None:
    device = file.create_device("probe")
    group = file.create_electrode_group("probe", "probe", "VISp", device)
    for number in range(6):
        file.add_electrode(x=10.0 * number, y=2.0, z=3.0, location=("VISp", "VISl")[number % 2], group=group,
                           id=850 + number)  # fmt: skip
    for name in ("quality", "isi_violations", "amplitude_cutoff", "presence_ratio", "peak_channel_id"):
        file.add_unit_column(name, name)
    for number, (quality, isi, cutoff, presence) in enumerate(QC):
        file.add_unit(
            spike_times=np.array([2.05, 2.06, 5.31, 10.1 + 0.25 * number]), id=950 + number, quality=quality,
            isi_violations=isi, amplitude_cutoff=cutoff, presence_ratio=presence, peak_channel_id=850 + number,
        )  # fmt: skip


FLASHES = [("im065", 1.0), ("im077", 1.75), ("omitted", 2.5), ("im065", 3.25)]


def calcium(
    path: Path, *, turned: bool = False, missing: bool = True, times: np.ndarray | None = None, clip: bool = False
) -> None:
    """Allen's Visual Behavior layout: flashed images by name, dF/F with negative values, licks, rewards, trials.

    dF/F of region r at sample n is n − 10 r − 20; sample 12 is NaN in region 0, region 2 is NaN throughout, and
    region 1 is no cell.
    """
    time = np.arange(0, 6, 0.1) if times is None else times
    with writing(path, subject="457841") as (pynwb, file):
        template = pynwb.image.ImageSeries(
            "Natural_Images_A", data=movie(2, 3), unit="NA", timestamps=np.full(2, np.nan), control=[0, 1],
            control_description=["im065", "im077"],
        )  # fmt: skip
        file.add_stimulus_template(template)
        table = pynwb.epoch.TimeIntervals("Natural_Images_A_presentations")
        for column in ("stimulus_name", "image_name", "image_index", "stimulus_block"):
            table.add_column(column, column)
        for name, start in FLASHES:
            index = {"im065": 0, "im077": 1, "omitted": 2}[name]
            table.add_interval(start_time=start, stop_time=start + 0.25, stimulus_name="Natural_Images_A",
                               image_name=name, image_index=index, stimulus_block=0)  # fmt: skip
        file.add_time_intervals(table)
        device = file.create_device("scope")
        channel = pynwb.ophys.OpticalChannel("green", "green", 500.0)
        plane = file.create_imaging_plane(
            name="plane", optical_channel=channel, description="plane", device=device, excitation_lambda=910.0,
            indicator="GCaMP6f", location="VISp", imaging_rate=10.0,
        )  # fmt: skip
        module = file.create_processing_module("ophys", "imaging")
        segmentation = pynwb.ophys.ImageSegmentation()
        cells = segmentation.create_plane_segmentation("cells", plane, "cell_specimen_table")
        cells.add_column("cell_specimen_id", "id")
        cells.add_column("valid_roi", "is a cell")
        for number in range(4):
            cells.add_roi(image_mask=np.eye(3), cell_specimen_id=700 + number, valid_roi=number != 1)
        module.add(segmentation)
        values = np.arange(len(time))[:, None] - 10.0 * np.arange(4) - 20
        if missing:
            values[12, 0], values[:, 2] = np.nan, np.nan
        region = cells.create_roi_table_region(region=[0, 1, 2, 3], description="all")
        series = pynwb.ophys.RoiResponseSeries("traces", data=values, rois=region, unit="NA", timestamps=time)
        module.add(pynwb.ophys.DfOverF(roi_response_series=series, name="dff"))
        other = pynwb.ophys.RoiResponseSeries("neuropil", data=values, rois=region, unit="NA", timestamps=time)
        module.add(pynwb.ophys.Fluorescence(roi_response_series=other, name="neuropil_trace"))
        rewards = file.create_processing_module("rewards", "rewards")
        rewards.add(pynwb.TimeSeries("volume", data=[0.007, 0.005], unit="mL", timestamps=[1.1, 3.3]))
        file.add_trial(start_time=0.0, stop_time=9.0)
        if clip:
            file.add_stimulus(pynwb.image.ImageSeries("clip", data=movie(50), unit="", starting_time=0.5, rate=10.0))
    with h5py.File(path, "a") as stored:  # the link of older files, which pynwb does not write any more
        group = stored.create_group("stimulus/presentation/Natural_Images_A")
        group.attrs["neurodata_type"] = "IndexSeries"
        group["data"], group["timestamps"] = np.array([0, 1], np.uint32), np.array([1.0, 1.75])
        group["indexed_timeseries"] = h5py.SoftLink("/stimulus/templates/Natural_Images_A")
    if turned:  # pynwb refuses what other writers do
        with h5py.File(path, "a") as stored:
            group = stored["processing/ophys/dff/traces"]
            del group["data"]
            group["data"] = values.T


def indexed(path: Path, *, order: bool = True, sizes: bool = False) -> None:
    """`Images` in no alphabetical order, and an IndexSeries that says which was shown; two units."""
    images = {"b": movie(1, 4)[0], "a": movie(1, 5)[0], "c": movie(1, 6, (3, 5) if sizes else (4, 5))[0]}
    with writing(path) as (pynwb, file):
        stored = [pynwb.image.GrayscaleImage(name=name, data=data) for name, data in images.items()]
        pack = pynwb.base.Images(
            name="scenes", images=stored, description="scenes",
            order_of_images=pynwb.base.ImageReferences("order_of_images", stored) if order else None,
        )  # fmt: skip
        file.add_stimulus_template(pack)
        file.add_stimulus(
            pynwb.image.IndexSeries(
                "shown",
                data=np.array([0, 2, 1, 0], np.uint32),
                unit="N/A",
                indexed_images=pack,
                timestamps=1 + 0.5 * np.arange(4),
            )
        )
        for unit in SPIKES:
            file.add_unit(spike_times=unit)


def ibl(path: Path, *, noise: bool = False) -> None:
    """IBL's layout: units with labels, a task with Gabors of which no frames are kept, perhaps sparse noise."""
    with writing(path, subject="SWC_054") as (pynwb, file):
        for name in ("location", "ibl_quality_score", "kilosort2_label"):
            file.add_unit_column(name, name)
        for number, unit in enumerate(SPIKES):
            file.add_unit(spike_times=unit, location=("VISp", "CA1")[number], ibl_quality_score=(1.0, 1 / 3)[number],
                          kilosort2_label=("good", "mua")[number])  # fmt: skip
        for column in ("gabor_stimulus_contrast", "gabor_stimulus_side"):
            file.add_trial_column(column, column)
        file.add_trial(start_time=100.0, stop_time=102.0, gabor_stimulus_contrast=25.0, gabor_stimulus_side="left")
        module = file.create_processing_module("passive_protocol", "passive")
        table = pynwb.epoch.TimeIntervals("gabor_table")
        for column in ("position", "contrast", "phase"):
            table.add_column(column, column)
        table.add_interval(start_time=50.0, stop_time=50.3, position=35.0, contrast=1.0, phase=0.2)
        module.add(table)
        if noise:
            module.add(pynwb.TimeSeries("rfm_stim", data=movie(20, 7, (15, 15)), unit="px",
                                        timestamps=1 + np.arange(20) / 10))  # fmt: skip


def build(folder: Path) -> Path:
    """Write the recording that the page on NWB converts, FOLDER/ada_0501.nwb, and return its path; see :func:`demo`."""
    folder.mkdir(parents=True, exist_ok=True)
    demo(folder / "ada_0501.nwb")
    return folder / "ada_0501.nwb"


def demo(path: Path, *, seconds: int = 40, units: int = 4) -> None:
    """A file that is large enough to be trained on: a movie of 12 x 12 pixels at 30 Hz in trials of 2 s.

    Every fifth trial shows the same clip. Units follow the brightness of a patch; running has no effect.
    """
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (seconds * 30, 12, 12), dtype=np.uint8)
    for start in range(0, len(frames), 300):
        frames[start : start + 60] = frames[:60]
    with writing(path) as (pynwb, file):
        file.add_stimulus(pynwb.image.ImageSeries("movie", data=frames, unit="n.a.", starting_time=1.0, rate=30.0))
        for number in range(seconds // 2):
            file.add_trial(start_time=1.0 + 2 * number, stop_time=3.0 + 2 * number)
        file.add_unit_column("quality", "of the sorting")
        for number in range(units):
            drive = frames[:, 2 * number : 2 * number + 3, 4:7].mean((1, 2)) / 255
            spikes = [1 + (bin_ + rng.random(n)) / 30 for bin_, n in enumerate(rng.poisson(drive)) if n]
            file.add_unit(spike_times=np.sort(np.concatenate(spikes)), id=number, quality="good")
        module = file.create_processing_module("behavior", "behaviour")
        time = np.arange(0, seconds + 2, 0.05)
        module.add(pynwb.TimeSeries("running", data=np.abs(np.sin(time)), unit="cm/s", timestamps=time))
