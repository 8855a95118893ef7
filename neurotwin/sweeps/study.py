"""The trials of a sweep, on Optuna: each is a training run in a process of its own, watched by its worker.

Any number of workers, on any machines that reach the storage and the folder, work on one study. A worker gives a sign
of life every so often; the trial of one that gives none is queued again, and goes on from its last checkpoint.
"""

import ctypes
import logging
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.report import load_run
from ..config import define, load_model_config
from ..likelihoods import Likelihood
from ..metrics.table import EvaluationError, summarize_table
from .space import SweepConfig, SweepError, flags_of, write_model

__all__ = ["Worker", "has_ended", "open_study", "value_of", "work"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # s between looks at a run
_IMPOSSIBLE = 2  # exit code of the training script where what is asked for is not possible


class _TrialFailed(Exception):
    """A trial ended without a result; the others go on."""


def open_study(config: SweepConfig) -> Any:
    """The study, made where it does not exist.

    Raises
    ------
    SweepError
        If Optuna is not installed, or the storage cannot be opened.
    """
    if find_spec("optuna") is None:
        raise SweepError("a sweep needs the extra: pip install 'neurotwin[sweep]'")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    config.folder.mkdir(parents=True, exist_ok=True)
    url = config.storage or f"sqlite:///{config.folder.absolute()}/study.db"
    for left in reversed(range(5)):
        try:
            storage = optuna.storages.RDBStorage(
                url, heartbeat_interval=config.heartbeat_s, grace_period=3 * config.heartbeat_s,
                heartbeat_stale_trial_callback=_queue_again,
            )  # fmt: skip
            return optuna.create_study(
                study_name=config.study, storage=storage, pruner=_pruner(config), direction="maximize",
                load_if_exists=True,
            )  # fmt: skip
        except Exception as error:  # whatever the driver of a database raises
            if not left:
                text = " ".join(str(error).split())[:200]
                raise SweepError(f"storage {url}: cannot be opened ({type(error).__name__}: {text})") from error
            time.sleep(_POLL)  # another worker may be making its tables at this moment
    raise AssertionError("the last attempt returns or raises")


def work(config: SweepConfig) -> Any:
    """Take trials of the study until it has all, and return it.

    Raises
    ------
    SweepError
        If a trial is not possible as the sweep's file has it: a flag or a value of the model file.
    """
    study = open_study(config)
    import optuna

    worker = Worker(config)
    while True:
        optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        ended = sum(has_ended(trial) for trial in trials)
        running = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in trials)
        if ended >= config.trials:
            return study
        if ended + running >= config.trials:  # the others work on them; one of them may still be lost
            time.sleep(_POLL)
            continue
        study.optimize(worker, n_trials=1, catch=(_TrialFailed,))


class Worker:
    """The objective: trains a model of the study and returns the mean figure of merit of its best epoch.

    Parameters
    ----------
    config
        The sweep.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        likelihood: type[Likelihood] = define("likelihood", load_model_config(config.model).likelihood.type)
        self.metric = config.metric or f"val_{likelihood.figure_of_merit}"

    def __call__(self, trial: Any) -> float:
        """Train a trial.

        Raises
        ------
        SweepError
            If it is not possible as the sweep's file has it.
        """
        import optuna

        config = self.config
        values = self.values(trial)
        name = trial.user_attrs.get("run") or f"trial_{trial.number:04d}"
        trial.set_user_attr("run", name)
        logger.info("%s: %s", name, ", ".join(f"{key} {_short(value)}" for key, value in values.items()))
        model = config.folder / "models" / f"{name}.yaml"
        write_model(config, values, model)
        process = self._start(name, model, values)
        try:
            self._watch(trial, process, name)
        except (optuna.TrialPruned, SweepError, _TrialFailed):
            raise
        except BaseException:  # the worker is told to end, or is at fault itself
            _end(process)
            _queue_again(trial.study, trial.study.get_trials(deepcopy=False)[trial.number])
            raise
        return self._result(trial, name)

    def values(self, trial: Any) -> dict[str, Any]:
        """What is proposed for a trial, by key. It depends on the trial's number and the results so far alone."""
        import optuna

        trial.study.sampler = optuna.samplers.TPESampler(
            seed=self.config.seed + trial.number, n_startup_trials=self.config.startup_trials, constant_liar=True
        )
        return {key: dimension.suggest(trial, key) for key, dimension in self.config.search.items()}

    def _start(self, name: str, model: Path, values: Mapping[str, Any]) -> subprocess.Popen:
        config = self.config
        flags = ["--model_config", str(model), "--dataset_configs_path", config.datasets, "--logger", "csv"]
        flags += ["--experiment_name", name, "--checkpoint_dir", str(config.folder), "--resume", "auto"]
        flags += ["--data_dir", config.data_dir] if config.data_dir else []
        flags += flags_of(config, values)
        log = config.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            # A process of its own, since the library does not know the training scripts.
            return subprocess.Popen(
                [sys.executable, "-m", "neurotwin", "train", *flags], stdout=file, stderr=file,
                start_new_session=True,  # Ctrl-C is for the worker, which tells the run to end
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip

    def _watch(self, trial: Any, process: subprocess.Popen, name: str) -> None:
        """Report every validation, until the run ends or is ended."""
        import optuna

        seen = 0
        while True:
            code = _wait(process, _POLL)
            for epoch, value in _curve(self.config.folder / name, self.metric)[seen:]:
                seen += 1
                if not np.isnan(value):
                    trial.report(value, epoch)
            if code is None and self.config.pruner != "none" and trial.should_prune():
                logger.info("%s: ended early after epoch %d", name, seen)
                _end(process)
                raise optuna.TrialPruned
            if code is not None:
                break
        if code == 0:
            return
        said = _last_line(self.config.folder / "logs" / f"{name}.log")
        if code == _IMPOSSIBLE:
            raise SweepError(f"{name}: {said}; correct the sweep's file")
        logger.warning("%s: failed with exit code %d: %s", name, code, said)
        trial.set_user_attr("failed", said)
        raise _TrialFailed(said)

    def _result(self, trial: Any, name: str) -> float:
        run = load_run(self.config.folder / name)
        if self.config.metric:
            values = [value for _, value in _curve(run.folder, self.metric) if not np.isnan(value)]
            if not values:
                raise SweepError(f"{run.folder}: metrics.csv has no {self.metric}; correct metric")
            return max(values)
        if run.table is None:
            trial.set_user_attr("failed", run.notes[0])
            raise _TrialFailed(run.notes[0])
        trial.set_user_attr("parameters", int(run.record["parameters"]))
        return float(summarize_table(run.table)[-1].mean)


def has_ended(trial: Any) -> bool:
    """Whether a trial has a result, or failed by its own fault; one whose worker is gone has been queued again."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs


def value_of(trial: Any) -> float:
    """The result of a trial: its own, else the best that it reported before it was ended; NaN where there is none."""
    if trial.value is not None:
        return float(trial.value)
    return max(trial.intermediate_values.values(), default=float("nan"))


def _pruner(config: SweepConfig) -> Any:
    import optuna

    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=1)
    return optuna.pruners.HyperbandPruner() if config.pruner == "hyperband" else optuna.pruners.NopPruner()


def _queue_again(study: Any, trial: Any) -> None:
    """Queue the values of a trial whose worker is gone; whoever takes it goes on in the same run folder."""
    import optuna

    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING, params=trial.params, distributions=trial.distributions,
            user_attrs={key: value for key, value in trial.user_attrs.items() if key == "run"},
        )
    )  # fmt: skip


def _curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Epochs and values of a run's metrics so far."""
    try:
        curves = load_run(folder).curves
    except EvaluationError:  # not written yet
        return []
    if metric not in curves:
        return []
    return [(int(epoch), float(value)) for epoch, value in zip(curves["epoch"], curves[metric], strict=True)]


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen) -> None:
    """Let a run save and end; it is ended for good where it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        if _wait(process, 120) is None:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """In the new process: be sent SIGTERM when the worker is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    return lines[-1].removeprefix("error: ")[:300]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
