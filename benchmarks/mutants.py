"""Break the code in many places, one at a time, and see whether the tests notice: ``python -m benchmarks.mutants``.

Every entry replaces a text that occurs exactly once in its file by another that looks as plausible and is wrong. It is
applied to a copy of the tree, in which the tests named beside it are then run. What they do not notice, nothing would.
At least 95% must be noticed. An entry whose text is not found exactly once is stale: correct it with the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant", "apply", "run_mutants", "stale"]

ROOT = Path(__file__).parent.parent
GOAL = 0.95
_LEFT_OUT = ("data", "results", "checkpoints", "runs")  # folders beside the code that are large and that no test reads


class Mutant(NamedTuple):
    """One fault.

    Attributes
    ----------
    file, old, new
        `new` stands in the place of `old`, which occurs once in the file.
    tests
        Files of tests, with options, that should notice.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_TABLE: dict[tuple[str, ...], list[tuple[str, str]]] = {
    # --- sessions and files -----------------------------------------------------------------------------------------
    ("neurotwin/tensorfile.py", "tests/neurotwin/data/test_session.py"): [
        ("if size != 8 + length + end:", "if size < 8 + length + end:"),
        ("if noted[1].decode() != _header_digest(head + raw):", "if noted is False:"),
        ('if verify and text["digest"] != _digest(arrays):', "if verify is None:"),
        ("step = max(1, _BLOCK // max(1, row))", "step = len(array)"),
        ("order = sorted(arrays, key=lambda name: (-np.", "order = sorted(arrays, key=lambda name: (np."),
    ],
    ("neurotwin/files.py", "tests/neurotwin/data/test_files.py"): [
        ("left.stat().st_mtime > _STALE", "left.stat().st_mtime > -1"),
        ("        temporary.unlink(missing_ok=True)", "        pass"),
    ],
    ("neurotwin/data/fields.py", "tests/neurotwin/data/test_session.py"): [
        ("np.argsort(np.argsort(first))[codes]", "codes"),
    ],
    ("neurotwin/data/session.py", "tests/neurotwin/data/test_session.py"): [
        ("return all(_same(getattr(self, f.name)", "return any(_same(getattr(self, f.name)"),
        ("largest = float(np.abs(part, dtype=np.float64).max(initial=0))", "largest = float(part.max(initial=0))"),
        ("np.isfinite(exposure) & (exposure > 0)", "np.isfinite(exposure) & (exposure >= 0)"),
    ],
    ("neurotwin/data/prepare.py", "tests/neurotwin/data/test_files.py", "tests/neurotwin/data/test_prepare.py"): [
        ("json.dumps([_VERSION, source, settings, dtype]", "json.dumps([_VERSION, source, settings]"),
        ("if noted.get(role) != stamp(path)", "if role not in noted"),
        ("variance = (self.train_squares - mean**2 * self.train_presentations)",
         "variance = (self.train_squares - mean**2 * self.train_bins)"),
    ],
    # --- from recordings to clips -----------------------------------------------------------------------------------
    ("neurotwin/data/arrange.py", "tests/neurotwin/data/test_prepare.py"): [
        ("* session.bin_rate - 1) > 0.5)", "* session.bin_rate - 1) > 1.5)"),
        ("np.cumsum(np.abs(np.diff(session.time)", "np.cumsum((np.diff(session.time)"),
        ("frames = grid.first + grid.factor - 1", "frames = grid.first"),
        ("y, y, m, 1 / e,", "y, y, m, e,"),
        ('(arrays["n_valid"] > 0) & (arrays["split"] == SPLITS.index("train"))', 'arrays["n_valid"] > 0'),
        ("session.valid[grid.groups].all(axis=1)", "session.valid[grid.groups].any(axis=1)"),
        ("array[self.groups].sum(axis=1)", "array[self.groups].mean(axis=1)"),
        ("span = 255 if stimulus", "span = 1 if stimulus"),
        ("columns[np.isin(values[columns], wanted)]", "columns[~np.isin(values[columns], wanted)]"),
        ("runs[session.trial[runs[:, 0]] >= 0]", "runs[session.trial[runs[:, 0]] > 0]"),
    ],
    ("neurotwin/data/masks.py", "tests/neurotwin/data/test_prepare.py"): [
        ("last_invalid < bins - n_lags", "last_invalid <= bins - n_lags"),
        ("(bins - n_lags >= starts)", "(bins - n_lags > starts)"),
        ("np.median(missing_pct, axis=0) > threshold", "np.median(missing_pct, axis=0) < threshold"),
        ("part.lags < reach", "part.lags > reach"),
        ("bins.runs, reach) & valid", "bins.runs, reach)"),
    ],
    ("neurotwin/data/split.py", "tests/neurotwin/data/test_prepare.py"): [
        ("np.unique(trial[usable & drawn])", "np.unique(trial[drawn])"),
        ("zlib.crc32(name.encode())", "0"),
        ("max(n_train, len(order) - n_test)", "n_train"),
        ("validates = trains and drawn.any() and config.train_val_split < 1", "validates = True"),
    ],
    ("neurotwin/data/transforms.py", "tests/neurotwin/data/test_transforms.py"): [
        ("prepend=np.take(part, [0], axis=self.axis)", "prepend=0"),
        ("return np.sign(array) * np.log1p(", "return np.log1p("),
        ("np.max(np.abs(array[context.train]), initial=0.0)", "np.max(np.abs(array), initial=0.0)"),
        ("np.maximum(-array, 0)", "np.minimum(array, 0)"),
        ("[np.repeat(flat[:1], before, axis=0), flat,", "[0 * np.repeat(flat[:1], before, axis=0), flat,"),
        ("array[context.train].astype(np.float64)", "array.astype(np.float64)"),
        ("np.maximum(1 + self.beta * z, 0.1)", "(1 + self.beta * z)"),
        ("kernels = raised_cosine_basis(self, bin_ms)[:, ::-1]", "kernels = raised_cosine_basis(self, bin_ms)"),
    ],
    ("neurotwin/data/pipelines.py", "tests/neurotwin/data/test_transforms.py", "tests/neurotwin/data/test_prepare.py"):
    [
        ("offset * scale[0] + scale[1]", "offset + scale[1]"),
        ("array[np.maximum(bins - lag, starts)]", "array[np.maximum(bins - lag, 0)]"),
        ("change[1:] |= label[1:] != label[:-1]", "change[1:] = label[1:] != label[:-1]"),
    ],
    ("neurotwin/data/kernels.py", "tests/neurotwin/data/test_transforms.py"): [
        ("np.pi / (2 * spacing)", "np.pi / spacing"),
        ("return np.log(time + bin_ms)", "return np.log(time + 1)"),
        ("basis = np.roll(basis, params.chomp, axis=1)", "basis = np.roll(basis, 0, axis=1)"),
        ("params.gamma * fast + (1 - params.gamma) *", "params.gamma * fast + params.gamma *"),
        ("kernel / kernel.sum()", "kernel / kernel.max()"),
    ],
    ("neurotwin/data/clips.py", "tests/neurotwin/data/test_clips.py"): [
        ("runs[np.linspace(0, len(runs) - 1, max(1, kept)).round().astype(int)] if len(runs) else runs",
         "runs[: max(1, kept)]"),
        ("(bins[:, before:] < stops[:, None])", "(bins[:, before:] <= stops[:, None])"),
        ("np.clip(bins, prepared.run_start[starts][:, None],", "np.clip(bins, 0,"),
        ("keys_lags.reach, least))", "keys_lags.reach + 1, least + 1))"),
        ("carries=offset > 0", "carries=False"),
        ("numbers = -(-(stops - starts) // length)", "numbers = (stops - starts) // length"),
        ("first = -(-begin // length)", "first = begin // length"),
        ("np.where(blanks[:, 1] == stops[home], numbers[home], end // length)", "end // length"),
        ("np.minimum(start[here] + self.length, cut.last[stretch])", "start[here] + self.length"),
        ('side="right") - 1\n            start[here]', 'side="left") - 1\n            start[here]'),
        ("inside[:, before - n_history :]", "inside[:, before - n_history + 1 :]"),
        ("/ (found.stop - found.start)", "/ self.length"),
        ("[part[0] :: part[1]]", "[0 :: part[1]]"),
    ],
    # --- what is measured -------------------------------------------------------------------------------------------
    ("neurotwin/metrics/sums.py", "tests/neurotwin/metrics/test_sums.py"): [
        ("response = y / e", "response = y"),
        ("rate**2, response**2, rate * response", "rate**2, response**2, rate * y"),
    ],
    ("neurotwin/metrics/definitions.py", "tests/neurotwin/metrics/test_sums.py"): [
        ("_gain(evidence) / (log(2.0) * spikes)", "_gain(evidence) / spikes"),
        ('-evidence.sums["log_likelihood"] / evidence.sums["bins"]',
         '-evidence.sums["log_likelihood"] / evidence.sums["responses"]'),
        ('s["rate_response"] - s["rate"] * s["response"] / bins', 's["rate_response"]'),
        ("1 - deviance / null_deviance", "1 - null_deviance / deviance"),
    ],
    ("neurotwin/metrics/table.py", "tests/neurotwin/metrics/test_table.py"): [
        ("summarize(each).mean, _mean(group, metric)", "_mean(group, metric), _mean(group, metric)"),
        ('return summarize(both["bps"]).mean / oracle', 'return summarize(table["fraction_of_oracle"]).mean'),
    ],
    ("neurotwin/metrics/reliability.py", "tests/neurotwin/metrics/test_reliability.py"): [
        ("others = (y.sum(0) - y) / (len(y) - 1)", "others = y.sum(0) / len(y) + 0 * y"),
        ("1 - (((y - rate) ** 2).mean() - _noise(y)) / explainable", "1 - ((y - rate) ** 2).mean() / explainable"),
    ],
    # --- likelihoods and links --------------------------------------------------------------------------------------
    ("neurotwin/likelihoods/base.py", "tests/neurotwin/test_likelihoods.py"): [
        ("return torch.where(valid, terms, 0.0)", "return terms"),
    ],
    ("neurotwin/likelihoods/poisson.py", "tests/neurotwin/test_likelihoods.py"): [
        ("return responses * expected.log() - expected", "return responses * expected.log() - rates"),
    ],
    ("neurotwin/likelihoods/negative_binomial.py", "tests/neurotwin/test_likelihoods.py"): [
        ("return _scatter(y, size) + y * (e * rate).log()", "return _scatter(y, size) + y * rate.log()"),
        ("moments = ((variance - mean) / mean**2)", "moments = (variance / mean**2)"),
    ],
    ("neurotwin/likelihoods/gaussian.py", "tests/neurotwin/test_likelihoods.py"): [
        ("0.5 * (log(2 * pi) + variance.log())", "0.5 * variance.log()"),
        ("self.smallest.copy_(_SMALLEST_SHARE * variance)", "self.smallest.copy_(variance)"),
    ],
    ("neurotwin/likelihoods/gamma.py", "tests/neurotwin/test_likelihoods.py"): [
        ("(k - 1) * y.log() - y / scale", "k * y.log() - y / scale"),
        ("event = -mean / zeros.log()", "event = -mean * zeros.log()"),
    ],
    ("neurotwin/links.py", "tests/neurotwin/test_links.py"): [
        ("return F.softplus(self.beta * drive) / self.beta", "return F.softplus(self.beta * drive)"),
        ("return Exp() if positive and not kind.positive else", "return Exp() if not kind.positive else"),
    ],
    # --- models -----------------------------------------------------------------------------------------------------
    ("neurotwin/models/readout.py", "tests/neurotwin/models/test_readout.py"): [
        ("(cos * away[..., 1] - sin * away[..., 0])", "(cos * away[..., 1] + sin * away[..., 0])"),
        ("(maps * self.feature_weights().abs())", "(maps * self.feature_weights())"),
        ("std=std * sqrt(channels / rank)", "std=std / sqrt(channels / rank)"),
        ("self.query) / sqrt(width)", "self.query)"),
    ],
    ("neurotwin/models/norms.py", "tests/neurotwin/models/test_norms.py"): [
        ("values.square().mean(dim=1) + self.eps", "values.square().sum(dim=1) + self.eps"),
        ("variance * count / (count - 1).clamp_min(1)", "variance"),
        ("y = z * (log_square * ((exponent - 1) / 2)).exp()", "y = z * (log_square * (exponent / 2)).exp()"),
        ("(self.log_sigma * self.log_exponent.exp()).exp()", "self.log_sigma.exp()"),
        ("mean = self.running_square / self.running_count.clamp_min(1e-12)", "mean = self.running_square"),
        ("share = (energy / energy.mean(dim=1, keepdim=True))", "share = (energy / energy.sum(dim=1, keepdim=True))"),
    ],
    ("neurotwin/models/layers.py", "tests/neurotwin/models/test_layers.py"): [
        ("self.dilation = dilation * inputs.step", "self.dilation = dilation"),
        ("values.max()) ** power)", "values.max()))"),
        ("x = x + y if self.residual and x.shape == y.shape else y", "x = y"),
        ("if self.window is None else self.weight * self.window", "if self.window is None else self.weight"),
        ("_taps_as_channels(channels_last(y.relu()), self.context, self.dilation)",
         "_taps_as_channels(channels_last(y), self.context, self.dilation)"),
    ],
    ("neurotwin/models/stages.py", "tests/neurotwin/models/test_readout.py"): [
        ("torch.arange(size) - (size - 1) / 2 for size", "torch.arange(size) - size / 2 for size"),
    ],
    ("neurotwin/models/activations.py", "tests/neurotwin/models/test_activations.py"): [
        ("torch.addcmul(first.square(), second, second)", "torch.addcmul(first.square(), first, second)"),
        ("torch.cat([single.relu(), energy]", "torch.cat([single, energy]"),
    ],
    ("neurotwin/models/convnet.py", "tests/neurotwin/models/test_convnet.py"): [
        ("params.drop_path * depth / len(self.blocks)", "params.drop_path * (depth - 1) / len(self.blocks)"),
        ("(kept / (1 - self.drop_path))", "kept"),
    ],
    ("neurotwin/models/transformer.py", "tests/neurotwin/models/test_transformer.py"): [
        ("rotated(query, self.angles[-1])", "rotated(query, self.angles[0])"),
        ("rank = torch.tensor([pair // len(axes)", "rank = torch.tensor([pair % len(axes)"),
    ],
    ("neurotwin/models/steerable.py", "tests/neurotwin/models/test_steerable.py"): [
        ("(y * angles.cos() - x * angles.sin())", "(y * angles.cos() + x * angles.sin())"),
    ],
    ("neurotwin/models/retinotopy.py", "tests/neurotwin/models/test_readout.py"): [
        ("+ self.centre", "- self.centre"),
    ],
    ("neurotwin/models/recurrent.py", "tests/neurotwin/models/test_recurrent.py"): [
        ("[new + keep * (state[0] - new)]", "[state[0] + keep * (new - state[0])]"),
        ("self.input_bias[hidden : 2 * hidden] = 1", "self.input_bias[hidden : 2 * hidden] = 0"),
    ],
    ("neurotwin/models/modulator.py", "tests/neurotwin/models/test_modulator.py"): [
        ("return x + gain * x + shift, None", "return gain * x + shift, None"),
        ("x[:, :, 1:].detach()", "x[:, :, 1:]"),
        ("hidden = hidden + (x if", "hidden = (x if"),
    ],
    ("neurotwin/models/network.py", "tests/neurotwin/models/test_twin.py"): [
        ("return self._state if clip.carries else None", "return None"),
        ("behavior[:, behavior.shape[1] - x.shape[2] :]", "behavior[:, : x.shape[2]]"),
        ("warm_up = self.context if state is None else", "warm_up = self.receptive_field - 1 if state is None else"),
    ],
    ("neurotwin/models/session_module.py", "tests/neurotwin/models/test_twin.py"): [
        ("history[:, -before:-1]", "history[:, -before + 1 :]"),
        ("rate = rate - self.baseline_link(self.baseline)", "rate = rate + self.baseline_link(self.baseline)"),
    ],
    ("neurotwin/models/penalties.py", "tests/training/test_regularizers.py"): [
        ("_second_difference(weight, -1) + _second_difference(weight, -2)",
         "_second_difference(weight, -1) - _second_difference(weight, -2)"),
        ("(weight.abs() - threshold).clamp(min=0)", "(weight.abs() - threshold)"),
        ("(epoch - schedule.start_epoch) / (last - schedule.start_epoch)", "epoch / last"),
    ],
    # --- training ---------------------------------------------------------------------------------------------------
    ("training/samplers.py", "tests/training/test_samplers.py"): [
        ("np.cumsum(scores[self._clips(np.arange(n_clips))])", "np.cumsum(scores)"),
        ("outside = values >= size", "outside = values > size"),
        ("self._bounds[group] + ", ""),
        ("self._starts[stretch] + places - self._edges[stretch]", "places"),
        ("self.emphasis * max(0.0, 1 - step / self.warmup_steps)", "self.emphasis * (step < self.warmup_steps)"),
        ("positions = np.arange(step * size, (step + 1) * size)",
         "positions = np.arange(step * self.batch_size, step * self.batch_size + size)"),
        ("[self.rank * self.batch_size :][: self.batch_size]", "[: self.batch_size]"),
        ("(self.seed, stream, group, int(number))", "(self.seed, stream, group)"),
        ("& (high > low)", ""),
    ],
    ("training/regularizers.py", "tests/training/test_regularizers.py"): [
        ("len(self._sessions) / len(present) if", "1.0 if"),
        ('corrected = second / (1 - group["betas"][1] ** step)', "corrected = second"),
        ("if parameter.grad is None or parameter not in groups:", "if parameter not in groups:"),
    ],
    ("training/schedulers.py", "tests/training/test_schedulers.py"): [
        ("return (step + 1) / self.warmup", "return step / self.warmup"),
        ("0.1 ** (3 * step // self.plan.steps)", "0.1 ** (3 * step / self.plan.steps)"),
        ("% self.period, self.period)", "% self.period, self.plan.steps)"),
    ],
    ("training/checkpoints.py", "tests/training/test_checkpoints.py"): [
        ("sign * value > sign * self.best", "value > self.best"),
        ("for path in (last, _previous(last)):", "for path in (last,):"),
    ],
    ("neurotwin/checkpoint_file.py", "tests/neurotwin/test_checkpoint_file.py"): [
        ("if _digest(file, size - _DIGITS) == tail[-_DIGITS:] else", "if tail else"),
        ("weights_only=True", "weights_only=False"),
    ],
    ("training/launch.py", "tests/training/test_launch.py"): [
        ("if asked is not None and asked != local:", "if asked is not None and asked < local:"),
        ('_number(environ, "SLURM_LOCALID", rank % counts[0])', '_number(environ, "SLURM_LOCALID", rank)'),
        ("node * local + local_rank", "node + local_rank"),
    ],
    ("training/pl_modules/multidataset_dm.py", "tests/training/test_multidataset.py"): [
        ("count=int(self.table.count(rows).sum())", "count=int(self.table.count(own).sum())"),
    ],
    ("neurotwin/config/dataset.py", "tests/neurotwin/test_config.py"): [
        ("range(int(match[1]), min(int(match[2]), LARGEST) + 1)",
         "range(int(match[1]), min(int(match[2]), LARGEST))"),
    ],
}  # fmt: skip

MUTANTS = [Mutant(file, old, new, tuple(tests)) for (file, *tests), pairs in _TABLE.items() for old, new in pairs]
"""Every fault."""


def stale(mutant: Mutant, root: Path = ROOT) -> str | None:
    """Why an entry cannot be applied to a tree; None if it can."""
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.file}: no such file (for {mutant.old!r})"
    number = path.read_text(encoding="utf-8").count(mutant.old)
    if number != 1:
        return f"{mutant.file}: {mutant.old!r} occurs {number} times and not once"
    absent = [name for name in mutant.tests if not (root / name).is_file()]
    return f"{mutant.file}: no such tests: {', '.join(absent)}" if absent else None


def apply(mutant: Mutant, root: Path) -> str:
    """Break a tree, and return what its file held before."""
    text = (root / mutant.file).read_text(encoding="utf-8")
    _write(root / mutant.file, text.replace(mutant.old, mutant.new))
    return text


def run_mutants(mutants: Sequence[Mutant], root: Path = ROOT) -> list[Mutant]:
    """Break a copy of a tree in one place after the other, and return the faults that no test noticed.

    Raises
    ------
    RuntimeError
        If an entry is stale, or tests fail where nothing is broken.
    """
    if faults := [fault for mutant in mutants if (fault := stale(mutant, root))]:
        raise RuntimeError("stale entries:\n" + "\n".join(faults))
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        shutil.copytree(root, copy, ignore=lambda here, names: _left_out(Path(here) == root, names))
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            if (done := _test(copy, tests)).returncode:
                raise RuntimeError(f"{' '.join(tests)} fail where nothing is broken:\n{done.stdout}{done.stderr}")
        for number, mutant in enumerate(mutants, 1):
            began, whole = time.perf_counter(), apply(mutant, copy)
            noticed = _test(copy, mutant.tests).returncode != 0
            _write(copy / mutant.file, whole)
            if not noticed:
                survived.append(mutant)
            took = f"{time.perf_counter() - began:5.1f} s"
            where = f"{number:3}/{len(mutants)}  {'noticed ' if noticed else 'SURVIVED'}  {took}  {mutant.file}"
            print(f"{where}: {mutant.old} -> {mutant.new}", flush=True)
    return survived


def _write(path: Path, text: str) -> None:
    """Write a module, and remove its compiled form, which Python could take for that of the new text."""
    path.write_text(text, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def _left_out(at_root: bool, names: Sequence[str]) -> list[str]:
    """What is not copied: hidden and compiled files, and at the root the folders of data and results."""
    return [n for n in names if n[0] == "." or n == "__pycache__" or (at_root and n in _LEFT_OUT)]


def _test(root: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run tests in a tree that was copied, on its own modules."""
    environ = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if enough was noticed, 1 if not, 2 if it cannot be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="only entries whose file's name holds one of these texts")
    arguments = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if not arguments.files or any(text in m.file for text in arguments.files)]
    if not chosen:
        parser.error("no entry is of such a file")
    try:
        survived = run_mutants(chosen)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    share = 1 - len(survived) / len(chosen)
    print(f"\n{len(chosen) - len(survived)} of {len(chosen)} faults were noticed: {share:.1%} (goal {GOAL:.0%})")
    for mutant in survived:
        print(f"not noticed by {' '.join(mutant.tests)}: {mutant.file}: {mutant.old} -> {mutant.new}")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
