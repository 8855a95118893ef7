"""Run the benchmarks: ``python -m benchmarks``; each is also a script of its own, ``python -m benchmarks.memory``.

Leave the machine to them: what else runs is in the figures. ``--write-docs`` puts the last full results into
docs/performance.md and measures nothing.
"""

import argparse
import importlib
import json
import tempfile
import time
from pathlib import Path

from .common import ROOT, Target, run, shown
from .pages import write_between

__all__ = ["LONG", "SUITE", "results_section", "write_docs"]

SUITE = (
    "training_speed", "arithmetic", "time_to_bps", "data_path", "start_up", "memory", "evaluation_speed", "processes",
    "many_sessions", "conversion", "gpu",
)  # fmt: skip
"""In the order in which they run; memory uses the recordings that start_up wrote."""
LONG = ("recurrent_clips", "transfer", "catalogue")
"""Run by name only: half an hour, three minutes, and five."""
PAGE = ROOT / "docs/performance.md"
MARKS = ("<!-- results: python -m benchmarks --write-docs -->\n", "<!-- end of results -->\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"of {', '.join(SUITE + LONG)}; default: all but {', '.join(LONG)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all run, and measures nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/benchmarks", help="folder of the JSON (%(default)s)"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the results in --out into docs/performance.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*SUITE, *LONG}:
        parser.error(f"no benchmark {min(unknown)!r}; there are {', '.join(SUITE + LONG)}")
    if arguments.write_docs:
        write_docs(PAGE, arguments.out)
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or SUITE:
            module = importlib.import_module(f"benchmarks.{name}")
            run(name, module.measure, module.TARGETS, Path(folder), quick=arguments.quick, out=arguments.out)
            print()
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; JSON in {arguments.out}")


def write_docs(page: Path, results: Path) -> None:
    """Replace what stands between the marks of a page."""
    write_between(page, *MARKS, results_section(results))


def results_section(results: Path) -> str:
    """Every target with what was measured of it, then the tables, as Markdown. Quick runs do not count."""
    lines, tables = ["", "| what | target | measured | |", "|---|---|---|---|"], []
    for name in SUITE + LONG:
        targets: dict[str, Target] = importlib.import_module(f"benchmarks.{name}").TARGETS
        file = results / f"{name}.json"
        result = json.loads(file.read_text()) if file.exists() else None
        if result is None or result["info"]["quick"]:
            result = {"figures": {}}
        for key, target in targets.items():
            value = result["figures"].get(key)
            lines.append(f"| {target.what} | {target.goal()} | {target.measured(value)} | {target.verdict(value)} |")
        if result["figures"]:
            tables += _table(name, result)
    return "\n".join([*lines, *tables, "", ""])


def _table(name: str, result: dict) -> list[str]:
    info = result["info"]
    where = f"{info['gpu'] or info['processor']}, {info['cores']} cores, {info['threads']} threads"
    lines = [
        "",
        f"### {name}",
        "",
        f"{info['date']}, {where}, torch {info['torch']}, load {info['load']:.1f} at the end.",
    ]
    lines += [f"{note[0].upper()}{note[1:]}." for note in result["notes"]]
    if result["rows"]:
        lines += ["", f"| {' | '.join(result['columns'])} |", f"|{'---|' * len(result['columns'])}"]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in result["rows"]]
    return lines


if __name__ == "__main__":
    main()
