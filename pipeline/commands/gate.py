"""Compare this run's metrics with the committed baseline; exit code 1 on a regression.

Run it after `dvc repro` (in CI, say). It is no stage: a failing stage would make `dvc exp run` save nothing.
`--update` writes the present metrics as the new baseline, to be committed with a reason.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.metrics.binary import METRICS
from pipeline.params import ParamsError, StrictParams, load_params, nearest
from pipeline.tables.contract import read_table
from pipeline.tables.training import Runs


class GateParams(StrictParams):
    """Section ``gate``: by how much each metric may worsen; metrics without an entry are not judged."""

    tolerances: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(min_length=1)


@dataclass(frozen=True)
class Verdict:
    """One metric that got worse than allowed, or is gone, with the values in words."""

    name: str
    before: float | None
    now: float | None
    worse_by: float | None
    tolerance: float


def worsening(metric: str, before: float, now: float) -> float:
    """By how much ``now`` is worse than ``before``, positive for worse.

    What should be 1 (calibration slope) or 0 (calibration intercept) worsens with its distance from there.
    """
    ideal = {"calibration_slope": 1.0, "calibration_intercept": 0.0}.get(metric)
    if ideal is not None:
        return abs(now - ideal) - abs(before - ideal)
    return before - now if METRICS[metric].higher_is_better else now - before


def compare(
    baseline: dict[str, float | None], current: dict[str, float | None], tolerances: dict[str, float]
) -> tuple[list[Verdict], int]:
    """The regressions, and how many metrics were judged.

    A metric that had a value and has none now is a regression: a gate that is silent about it is no gate.
    """
    regressions, judged = [], 0
    for name, before in sorted(baseline.items()):
        metric, group = name.rsplit("/", 1)[1], name.rsplit("/", 2)[1]
        # The gap and the prevalence have no better and worse of their own.
        if metric not in tolerances or before is None or group == "target_minus_source":
            continue
        judged += 1
        now = current.get(name)
        worse = None if now is None else worsening(metric, before, now)
        if worse is None or worse > tolerances[metric]:
            regressions.append(Verdict(name, before, now, worse, tolerances[metric]))
    return regressions, judged


def to_markdown(regressions: list[Verdict], judged: int) -> str:
    """A summary that a pull request can show."""
    if not regressions:
        return f"**Gate passed**: {judged} metrics, none worse than its tolerance.\n"
    lines = [
        f"**Gate failed**: {len(regressions)} of {judged} metrics are worse than the baseline allows.",
        "",
        "| run / finding / split / group / metric | baseline | now | worse by | allowed |",
        "|---|---:|---:|---:|---:|",
    ]
    for verdict in regressions:
        cells = [verdict.before, verdict.now, verdict.worse_by, verdict.tolerance]
        shown = ["none" if value is None else f"{value:.4f}" for value in cells]
        lines.append(f"| {verdict.name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--metrics", type=Path, default=Path("reports/metrics.json"), metavar="PATH")
    arguments.add_argument("--runs", type=Path, default=Path("data/predict/runs.parquet"), metavar="PATH")
    arguments.add_argument("--baseline", type=Path, default=Path("baseline.json"), metavar="PATH")
    arguments.add_argument("--update", action="store_true", help="write the baseline instead of comparing with it")
    args = arguments.parse_args()
    params = load_params(GateParams, "gate", args.params)
    for metric in params.tolerances:
        if metric not in METRICS:
            raise ParamsError(f"gate.tolerances: unknown metric '{metric}'{nearest(metric, sorted(METRICS))}")
        if METRICS[metric].higher_is_better is None and not metric.startswith("calibration_"):
            raise ParamsError(f"gate.tolerances: '{metric}' has no better and worse")
    current = {"initialisation": _initialisation(args.runs), "metrics": _read(args.metrics, "`dvc repro` makes it")}
    if args.update:
        args.baseline.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"wrote {args.baseline}")
        return
    baseline = _read(args.baseline, "make one with --update, and commit it")
    if baseline["initialisation"] != current["initialisation"]:
        raise PipelineError(
            f"the baseline was made with weights {baseline['initialisation']}, this run with "
            f"{current['initialisation']}: they cannot be compared. Bring the same weights, or make a new baseline "
            "with --update"
        )
    regressions, judged = compare(baseline["metrics"], current["metrics"], params.tolerances)
    if judged == 0:
        raise PipelineError("no metric of the baseline has a tolerance in gate.tolerances: nothing was judged")
    print(to_markdown(regressions, judged))
    sys.exit(1 if regressions else 0)


def _initialisation(path: Path) -> dict[str, str]:
    """What each backbone's runs that are not from scratch started from."""
    runs = read_table(Runs, path)
    started = runs[runs["initialisation"] != "scratch"]
    return dict(sorted(set(zip(started["backbone"], started["weights_name"], strict=True))))


def _read(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise PipelineError(f"{path} is not there; {advice}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise PipelineError(f"{path} is no JSON ({error}); {advice}") from None


if __name__ == "__main__":
    cli.run(main)
