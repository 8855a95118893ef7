"""New sessions on a trained core: checked, fitted, scored, alone or beside the old ones."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.evaluate import evaluate
from ..config import ConfigError, DatasetConfig, load_dataset_configs
from ..config.locate import file_name, is_url
from ..data.clips import has_part
from ..data.pictures import all_shown
from ..data.prepare import Prepared, open_session, prepare
from ..data.remote import local_places
from ..data.session import SessionError
from ..metrics.table import Table
from ..models.ensemble import Ensemble
from ..models.twin import TwinModel
from .checks import check_new, shown_before
from .features import feature_bank
from .fit import FitOptions, FitReport, fit_session
from .tune import check_tuned, tune

__all__ = ["Transferred", "cache_folder", "fewer", "join", "open_new", "transfer"]

logger = logging.getLogger(__name__)

_YAML = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """A twin of new sessions.

    Attributes
    ----------
    twin
        The new sessions on the core; with `add`, the old ones before them.
    table
        One row a unit of the new sessions, on their validation part.
    reports
        What the fit of each new session chose, by name; in an ensemble, by "NAME, MEMBER".
    seconds
        Wall time of features and fits, by the same names; "tune" for the fine-tuning.
    tested
        Names of the new sessions that have a test part, which nothing here has looked at.
    """

    twin: TwinModel
    table: Table
    reports: dict[str, FitReport]
    seconds: dict[str, float]
    tested: tuple[str, ...]


def transfer(
    twin: TwinModel, sessions: Sequence[DatasetConfig], *, tune_part: str | None = None, add: bool = False,
    n_trials: int | None = None, minutes: float | None = None, seed: int = 0, options: FitOptions | None = None,
    cache_dir: str | Path | None = None,
) -> Transferred:  # fmt: skip
    """Fit new sessions on the core of a trained twin.

    The features of the core are computed once per session and kept in a file. Then everything that a session has for
    itself is fitted to convergence (:func:`~neurotwin.transfer.fit.fit_session`), with penalties chosen by its
    validation part. The core's weights and running statistics stay as they are, to the last bit, unless it is tuned.
    Where validation or test show pictures that the core was trained on, a warning says so.

    Parameters
    ----------
    twin
        The trained twin; it is not changed. Every member of an ensemble is fitted by itself. Features are computed,
        and the core is tuned, where it lies; the result lies on the CPU.
    sessions
        Configs of the new sessions, see :func:`open_new`.
    tune_part
        "core", "modulator" or "all": afterwards change these too, a little, with the new sessions' data alone.
    add
        Keep the old sessions in the twin; their readouts stay bit for bit.
    n_trials, minutes
        How much of the training part to use: so many trials, or as many trials as last so long. The part of the
        validation that chooses penalties shrinks in the same proportion.
    seed
        Draws these trials.
    options
        Of the fit.
    cache_dir
        Where features are kept; default: beside the prepared sessions.

    Raises
    ------
    ConfigError
        If there is no session, one does not fit the core, `add` is asked for together with tuning, or the twin lacks
        the part to tune.
    SessionError
        If a recording is missing or broken.
    """
    _check_request(twin, sessions, tune_part, add)
    prepared = prepare(sessions)
    for session in prepared:
        if line := shown_before(twin, session):
            logger.warning(line)
    given = {"tune_part": tune_part, "add": add, "n_trials": n_trials, "minutes": minutes, "seed": seed}
    return _transfer(twin, prepared, **given, options=options, cache_dir=cache_dir)


def _transfer(
    twin: TwinModel, prepared: Sequence[Prepared], *, tune_part: str | None, add: bool, n_trials: int | None,
    minutes: float | None, seed: int, options: FitOptions | None, cache_dir: str | Path | None,
) -> Transferred:  # fmt: skip
    """Fit prepared sessions; each member of an ensemble by itself."""
    if len(twin.members) > 1:
        given = {"tune_part": tune_part, "add": add, "n_trials": n_trials, "minutes": minutes, "seed": seed}
        return _each_member(twin, prepared, **given, options=options, cache_dir=cache_dir)
    for session in prepared:
        if not has_part(session, "val"):
            raise SessionError(
                f"session {session.name}: has no validation part, which chooses the penalty; set train_val_split "
                "below 1, or label bins or trials for validation"
            )
    joined = join(twin, prepared)
    device, n_old = joined.like.device, len(twin.sessions)
    reports, seconds, used = {}, {}, []
    for index, session in enumerate(prepared, n_old):
        start = time.perf_counter()
        logger.info("session %s: features of the frozen core", session.name)
        bank = feature_bank(joined.to(device), session, index, cache_folder(session.spec.config, cache_dir))
        part = fewer(session, n_trials=n_trials, minutes=minutes, seed=seed)
        used.append(part)
        reports[session.name] = fit_session(joined.cpu(), index, replace(bank, prepared=part), options)
        seconds[session.name] = time.perf_counter() - start
    result = joined if add else joined.without([spec.name for spec in twin.sessions])
    if tune_part is not None:
        start = time.perf_counter()
        tune(result.to(device), used, tune_part, seed=seed)
        result.pictures = all_shown([result.pictures, {part.name: part.shown("train") for part in used}])
        seconds["tune"] = time.perf_counter() - start
    result.cpu().eval()
    table = evaluate(result, prepared, "val")
    tested = tuple(session.name for session in prepared if has_part(session, "test"))
    return Transferred(twin=result, table=table, reports=reports, seconds=seconds, tested=tested)


def _check_request(twin: TwinModel, sessions: Sequence[DatasetConfig], tune_part: str | None, add: bool) -> None:
    """Refuse what cannot be done, before anything is prepared or fitted."""
    if not sessions:
        raise ConfigError("transfer: no new session was given; give at least one")
    if tune_part is None:
        return
    if add:
        raise ConfigError(f"--add keeps old readouts, which a tuned core would not suit; leave out --tune {tune_part}")
    for member in twin.members:
        check_tuned(member.network, tune_part)


def _each_member(twin: TwinModel, prepared: Sequence[Prepared], **given: Any) -> Transferred:
    """Transfer each member of an ensemble; an ensemble of what they become."""
    names = twin.names
    parts = [_transfer(member.network, prepared, **given) for member in twin.members]
    ensemble = Ensemble([part.twin for part in parts], names).eval()
    named = list(zip(names, parts, strict=True))
    return Transferred(
        twin=ensemble,
        table=evaluate(ensemble, prepared, "val"),
        reports={f"{key}, {name}": report for name, part in named for key, report in part.reports.items()},
        seconds={f"{key}, {name}": time for name, part in named for key, time in part.seconds.items()},
        tested=parts[0].tested,
    )


def join(twin: TwinModel, prepared: Sequence[Prepared]) -> TwinModel:
    """The twin's core and sessions, and new ones that are not fitted yet; the twin itself is not changed.

    Raises
    ------
    ConfigError
        If a new session does not fit the core, or the twin is an ensemble.
    """
    if len(twin.members) > 1:
        raise ConfigError("an ensemble has several cores; give one of its members, or use transfer() for all of them")
    for session in prepared:
        check_new(twin, session.spec)
    joined = twin
    for session in prepared:
        joined = joined.add_session(session.spec)
    return joined


def open_new(
    twin: TwinModel, given: str | Path | Sequence[str | Path], *, data_dir: str | Path | None = None
) -> list[DatasetConfig]:
    """Configs of new sessions from a dataset YAML, a folder of such, or recordings.

    For recordings, preprocessing (transforms, lags, filters, rate) is that of the checkpoint's session of the same
    subject, else of its first session; all units are fitted.

    Parameters
    ----------
    twin
        The trained twin.
    given
        Paths; those of recordings may be URLs.
    data_dir
        Folder of the recordings that a YAML names.

    Raises
    ------
    ConfigError
        If a file is missing, or a YAML is wrong.
    SessionError
        If the rate of a recording is not a whole multiple of the twin's.
    """
    configs: list[DatasetConfig] = []
    for one in [given] if isinstance(given, str | Path) else given:
        if is_url(one):
            configs.append(_like_known(twin, one))
            continue
        path = Path(one)
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give a dataset YAML, a folder of such, or session files")
        if path.suffix in _YAML or (path.is_dir() and any(p.suffix in _YAML for p in path.iterdir())):
            configs += load_dataset_configs(path, data_dir=data_dir)
        else:
            configs.append(_like_known(twin, path.resolve()))
    return configs


def _like_known(twin: TwinModel, path: str | Path) -> DatasetConfig:
    """The config of a recording, prepared as the twin's sessions are."""
    name = Path(file_name(path)).stem
    recording = open_session(DatasetConfig(session=name, path=str(path)))
    spec = next((spec for spec in twin.sessions if spec.subject == recording.subject), twin.sessions[0])
    ratio = recording.bin_rate / spec.bin_rate
    if ratio < 1 - 1e-3 or abs(ratio - round(ratio)) > 1e-3:
        raise SessionError(
            f"{path}: has {recording.bin_rate:g} bins a second, and the model {spec.bin_rate:g}, of which it must be a "
            "whole multiple; resample the recording"
        )
    rates = {"source_rate": float(recording.bin_rate), "target_rate": float(recording.bin_rate) / round(ratio)}
    there = set(recording.stimulus_type.tolist())
    types = None if spec.config.types is None else tuple(kind for kind in spec.config.types if kind in there)
    if types == ():
        raise SessionError(
            f"{path}: shows {', '.join(sorted(there))}, where the model was trained on {', '.join(spec.config.types)}; "
            "write a dataset YAML with the `types` to use"
        )
    sampling = DatasetConfig(sampling=rates).sampling if round(ratio) > 1 else None
    new = {"session": name, "subject": recording.subject, "path": str(path), "cids": None, "units": {}}
    new |= dict.fromkeys(("visual", "qcmissing", "qccontam", "cidsqc", "cids_qc", "snr"), ()) | {"eye": ""}
    return spec.config.model_copy(update=new | {"sampling": sampling, "types": types})


def fewer(
    prepared: Prepared, *, n_trials: int | None = None, minutes: float | None = None, seed: int = 0
) -> Prepared:  # fmt: skip
    """The session with fewer training trials, drawn by the seed, and validation trials in the same proportion.

    At least two trials of each part are kept where there are as many.

    Raises
    ------
    ConfigError
        If there are fewer trials or minutes than asked for.
    """
    if n_trials is None and minutes is None:
        return prepared
    split, rng = np.array(prepared.split), np.random.default_rng(seed)
    train = rng.permutation(prepared.trials("train"))
    shown, bins = np.unique(prepared.trial[split == 0], return_counts=True)
    lengths = bins[np.searchsorted(shown, train)]
    recorded = np.cumsum(lengths) / prepared.spec.bin_rate / 60
    kept = n_trials if n_trials is not None else int(np.searchsorted(recorded, minutes * (1 - 1e-9))) + 1
    if kept < 1 or kept > len(train):
        raise ConfigError(
            f"session {prepared.name}: has {len(train)} training trials of {recorded[-1]:.3g} minutes together; ask "
            f"for fewer ({'--n_trials' if n_trials is not None else '--minutes'})"
        )
    val = rng.permutation(prepared.trials("val"))
    choosing = min(len(val), max(2, round(len(val) * kept / len(train))))
    split[(split == 0) & ~np.isin(prepared.trial, train[:kept])] = -1
    split[(split == 1) & ~np.isin(prepared.trial, val[:choosing])] = -1
    return replace(prepared, split=split)


def cache_folder(config: DatasetConfig, cache_dir: str | Path | None = None) -> Path:
    """Where features are kept: beside the prepared arrays of the session."""
    return local_places(config.path or ".", cache_dir)[1]
