"""From a session file and its config to arrays that every process maps: computed once, mapped from then on.

The arrays are written beside the data (or in ``NEUROTWIN_CACHE``) under a name that hashes the source and everything in
the config that they depend on; from then on they are memory-mapped. The stimulus itself is not copied where its
pipeline is only scaling: the prepared file then holds the index of the frame that each bin shows. How the arrays come
about stands in :mod:`~neurotwin.data.arrange`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..config import DatasetConfig
from ..config.locate import moved
from ..files import stamp, write_json
from ..likelihoods import ResponseStatistics
from ..tensorfile import TensorFileError, load_arrays, load_metadata, save_arrays
from .arrange import arrange, bin_stretches, outline_session, resolved
from .formats import as_session_file
from .pictures import ShownPictures, shown_pictures
from .remote import local_places
from .session import SPLITS, Session, SessionError
from .spec import SessionSpec

__all__ = ["Prepared", "open_session", "outline", "prepare", "prepare_session"]

logger = logging.getLogger(__name__)

_VERSION = 6  # of what the arrays mean: part of the key, by which a run knows that its recordings are the same
_LAYOUT = 2  # of the file that holds them
_LABELS = {
    "path", "directory", "data_dir", "lab", "eye", "visual", "qcmissing", "qccontam", "cidsqc", "cids_qc", "snr",
    "missingth", "contamth", "adapter", "readout",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One session, ready to be cut into clips. T counts modelled bins, oldest first within each run.

    Attributes
    ----------
    spec
        What a model must know of the session.
    key
        Hash of the recording's content and of all settings that the arrays depend on.
    source
        (N, ...): frames as recorded, or float as transformed by what is more than scaling.
    frame
        (T,) index into `source` of the frame that each bin shows.
    responses
        (T, U) responses per bin.
    mask
        (T, U) bool: valid responses.
    n_valid
        (T,) int32: valid responses of each bin.
    train_bins, train_presentations, train_sum, train_squares, train_zeros
        (U,) float64, over the valid training bins of each unit: their number, the presentations e that they sum over,
        the sums of y and of y²/e, and the number without a positive response.
    split
        (T,) int8: index into ``("train", "val", "test")``, -1 for none.
    run_start, run_stop
        (T,) first and one past the last bin of the run that a window may not leave.
    contrast
        (T,) standard deviation of each bin's frame, as a fraction of the range of pixels.
    trial
        (T,) trial of each bin as recorded.
    repeat_id
        (T,) equal ids ≥ 0 are repeats of one another.
    behavior
        (T, K) float32, or None.
    exposure
        (T,) presentations that a bin's responses sum over, or None.
    true_rate
        (T, U) expected response per bin, or None.
    stretches
        (R, 5) as kept in the prepared file, see :func:`~neurotwin.data.arrange.bin_stretches`. None in a copy with
        other arrays (`dataclasses.replace`): they are then found anew.
    pictures
        Of the training part, as kept in the prepared file; None in a copy. :meth:`shown` gives them in either case.
    """

    spec: SessionSpec
    key: str = ""
    source: np.ndarray
    frame: np.ndarray
    responses: np.ndarray
    mask: np.ndarray
    n_valid: np.ndarray
    train_bins: np.ndarray
    train_presentations: np.ndarray
    train_sum: np.ndarray
    train_squares: np.ndarray
    train_zeros: np.ndarray
    split: np.ndarray
    run_start: np.ndarray
    run_stop: np.ndarray
    contrast: np.ndarray
    trial: np.ndarray
    repeat_id: np.ndarray
    behavior: np.ndarray | None = None
    exposure: np.ndarray | None = None
    true_rate: np.ndarray | None = None
    stretches: np.ndarray | None = field(default=None, init=False)
    pictures: ShownPictures | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """Name of the session."""
        return self.spec.name

    @property
    def n_bins(self) -> int:
        """Number of modelled bins, T."""
        return len(self.frame)

    @property
    def n_units(self) -> int:
        """Number of units to fit, U."""
        return self.responses.shape[1]

    def trials(self, split: str) -> np.ndarray:
        """Trials that have a valid response in a part, sorted."""
        return np.unique(self.trial[(np.asarray(self.split) == SPLITS.index(split)) & (np.asarray(self.n_valid) > 0)])

    def shown(self, split: str) -> ShownPictures:
        """Which pictures a part shows, at most 1,000; for training, those that the prepared file keeps."""
        if split == "train" and self.pictures is not None:
            return self.pictures
        return shown_pictures(
            self.source, self.frame, bins=np.flatnonzero(np.asarray(self.split) == SPLITS.index(split)),
            run=self.run_start, contrast=self.contrast, bin_rate=self.spec.bin_rate,
        )  # fmt: skip

    def median_behavior(self) -> np.ndarray:
        """Median of each behaviour variable over the training bins, (K,), in the units that the model sees."""
        return np.median(self.behavior[np.asarray(self.split) == SPLITS.index("train")], axis=0)

    def statistics(self) -> ResponseStatistics:
        """Of the responses per bin and presentation, over the valid training bins: what a model starts from."""
        bins, presentations = np.maximum(self.train_bins, 1), np.maximum(self.train_presentations, 1)
        mean = self.train_sum / presentations
        variance = (self.train_squares - mean**2 * self.train_presentations) / bins
        known = (mean, np.maximum(variance, 0), self.train_zeros / bins)
        return ResponseStatistics(*map(torch.from_numpy, known))


def prepare(
    configs: Sequence[DatasetConfig],
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    dtype: str = "uint8",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Prepared]:
    """Prepare the sessions of a run, or map what was prepared before.

    Parameters
    ----------
    configs
        Of the sessions. Those of a trained twin are ``[spec.config for spec in twin.sessions]``.
    data_dir
        The folder of the recordings, where they do not lie where the configs say, as on another machine.
    cache_dir, dtype
        As for :func:`prepare_session`.
    progress
        Told before each session: how many are done, how many there are, its name.

    Raises
    ------
    SessionError
        If a session is unusable, or the sessions disagree in bin rate or lags.
    """
    sessions = []
    for index, config in enumerate(moved(config, data_dir) for config in configs):
        if progress is not None:
            progress(index, len(configs), config.session)
        sessions.append(prepare_session(config, cache_dir=cache_dir, dtype=dtype))
    _check_alike([prepared.spec for prepared in sessions])
    return sessions


def outline(configs: Sequence[DatasetConfig]) -> list[SessionSpec]:
    """What a model must know of the sessions of a run, as far as headers and configs tell it.

    This takes no time and writes nothing, so that a run that is not possible is refused before its data are prepared.
    Data of another layout are an exception: they are converted first. So are recordings that lie elsewhere: they are
    fetched first.

    Raises
    ------
    SessionError
        If a session is missing or broken, a config asks for what it does not have, or the sessions disagree.
    """
    specs = []
    for config in configs:
        specs.append(outline_session(open_session(config), config))
    _check_alike(specs)
    return specs


def prepare_session(config: DatasetConfig, *, cache_dir: str | Path | None = None, dtype: str = "uint8") -> Prepared:
    """Prepare one session, or map what was prepared before.

    Parameters
    ----------
    config
        The session's configuration; `config.path` is its data, of another format too: they are then converted once,
        beside the prepared arrays. Of a URL, a copy is used (:mod:`~neurotwin.data.remote`).
    cache_dir
        Where prepared arrays are kept. Default: ``NEUROTWIN_CACHE``, else the folder `prepared` beside the data; of a
        URL, beside its copy.
    dtype
        Stimulus in storage: "uint8" (a pipeline that is more than scaling is kept as float32), "bfloat16" (kept as
        float16) or "float32". Scaling is left to the device whatever the type, so that a model sees the same.

    Raises
    ------
    SessionError
        If the session is missing or broken, the config asks for what it does not have, or the recording or the
        prepared file was altered.

    Notes
    -----
    Size and header of both files are checked at every start. Comparing the content with its checksum takes
    longer. It is done when the size or the time of change of a file differs from those noted in ``NAME.checked.json``
    at the last comparison.
    """
    path, folder = _session_file(config, cache_dir)
    session = Session.load(path, verify=False)
    config = resolved(session, config)
    key = _key(path, config, dtype)
    cached = folder / f"{config.session}-{key}-{_LAYOUT}.safetensors"
    try:
        if cached.exists():
            _verify_changed(path, cached)
        else:
            load_arrays(path)  # whole, against its checksum
            arrays, spec = arrange(session, config, dtype)
            made = {name: array for name, array in arrays.items() if name != "stimulus"}
            shown = Prepared(spec=spec, source=arrays.get("stimulus", session.stimulus), **made).shown("train")
            arrays["stretches"] = bin_stretches(arrays["run_start"], arrays["split"], arrays["n_valid"])
            arrays |= {"pictures": shown.hashes, "still": shown.still}
            save_arrays(cached, arrays, {"spec": spec.to_json() | {"config": None}, "pictures": shown.total})
            _note(path, cached)
        arrays, metadata = load_arrays(cached, verify=False)
    except TensorFileError as error:
        cure = "; delete it, it will be prepared again" if str(cached) in str(error) else ""
        raise SessionError(f"{error}{cure}") from None
    except OSError as error:
        raise SessionError(
            f"session {config.session!r}: prepared arrays cannot be written to {folder} ({error.strerror}); free "
            "space there, or set NEUROTWIN_CACHE to a folder that can be written"
        ) from None
    spec = SessionSpec.from_json(metadata["spec"] | {"config": {}})
    source, stretches = arrays.pop("stimulus", session.stimulus), arrays.pop("stretches")
    pictures = ShownPictures(hashes=arrays.pop("pictures"), still=arrays.pop("still"), total=metadata["pictures"])
    prepared = Prepared(spec=replace(spec, subject=config.subject, config=config), source=source, key=key, **arrays)
    object.__setattr__(prepared, "stretches", stretches)
    object.__setattr__(prepared, "pictures", pictures)
    return prepared


def open_session(config: DatasetConfig, *, verify: bool = False) -> Session:
    """The recording that a config names, its arrays memory-mapped; data of another layout are converted first.

    A recording that lies elsewhere is fetched first.

    Parameters
    ----------
    config
        The session's configuration.
    verify
        Compare the whole content with its checksum.

    Raises
    ------
    SessionError
        If it is missing or broken.
    """
    return Session.load(_session_file(config)[0], verify=verify)


def _check_alike(specs: Sequence[SessionSpec]) -> None:
    first = specs[0]
    for other in specs[1:]:
        if abs(other.bin_rate - first.bin_rate) > 1e-6 * first.bin_rate:
            raise SessionError(
                f"sessions {first.name!r} and {other.name!r} have {first.bin_rate:g} and {other.bin_rate:g} bins a "
                "second; set `sampling` so that all have one rate"
            )
        if (other.n_lags, other.n_history) != (first.n_lags, first.n_history):
            raise SessionError(
                f"sessions {first.name!r} and {other.name!r} differ in keys_lags; give all the same lags"
            )


def _session_file(config: DatasetConfig, cache_dir: str | Path | None = None) -> tuple[Path, Path]:
    """The session's file, and the folder of its prepared arrays."""
    path, folder = local_places(config.path or f"{config.session}.safetensors", cache_dir)
    rate = None if config.sampling is None else config.sampling.source_rate
    return as_session_file(path, name=config.session, folder=folder, bin_rate=rate), folder


def _verify_changed(source: Path, cached: Path) -> None:
    """Compare with their checksums the files whose size or time of change is not the one noted; then note it."""
    try:
        noted = json.loads(_note_of(cached).read_text())
    except (OSError, ValueError):
        noted = None
    noted = noted if isinstance(noted, dict) else {}
    changed = [path for role, path in (("source", source), ("cached", cached)) if noted.get(role) != stamp(path)]
    for path in changed:
        logger.info("comparing %s with its checksum", path)
        load_arrays(path)
    if changed:
        with suppress(OSError):  # a cache that cannot be written is checked at every start
            _note(source, cached)


def _note(source: Path, cached: Path) -> None:
    write_json(_note_of(cached), {"source": stamp(source), "cached": stamp(cached)})


def _note_of(cached: Path) -> Path:
    return cached.with_suffix(".checked.json")


def _key(path: Path, config: DatasetConfig, dtype: str) -> str:
    """Hash of the source's content and of all that the prepared arrays depend on."""
    source = load_metadata(path)["digest"]
    settings = config.model_dump(mode="json", by_alias=True, exclude=_LABELS)
    text = json.dumps([_VERSION, source, settings, dtype], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
