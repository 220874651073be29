"""Compare this run's metrics with the committed baseline; exit code 1 on a regression.

Run it after `dvc repro` (in CI, say). It is no stage: a failing stage would make `dvc exp run` save nothing.
`--update` writes the present metrics as the new baseline, to be committed with a reason. With ``gate.from_seeds`` in
params the baseline holds the variance between training seeds too, and tolerances are learnt from it: other seeds alone
then turn the gate red with at most the stated probability, whatever the number of metrics. Where trainings are too few
or alike, the number in ``gate.tolerances`` counts, and the gate says so.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.metrics.binary import METRICS
from pipeline.metrics.tolerance import moderated, tolerance
from pipeline.params import Fraction, ParamsError, StrictParams, load_params, nearest
from pipeline.tables.contract import read_table
from pipeline.tables.evaluation import SeedSpread, flat_name
from pipeline.tables.training import Runs

_ALIKE = 1e-12  # a variance below it is rounding


class FromSeeds(StrictParams):
    """How tolerances are learnt: ``false_alarm`` is the chance that other seeds alone turn the gate red.

    A model of fewer than ``least_seeds`` trainings has the fixed tolerance.
    """

    false_alarm: Fraction = 0.05
    least_seeds: Annotated[int, Field(ge=2)] = 3


class GateParams(StrictParams):
    """Section ``gate``: by how much each metric may worsen; metrics without an entry are not judged.

    With ``from_seeds`` these numbers are for what has no tolerance learnt from the seeds.
    """

    tolerances: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(min_length=1)
    from_seeds: FromSeeds | None = None


class Seeds(NamedTuple):
    """How many trainings a metric is the mean of, and the variance between them (None: one, or undefined)."""

    num_runs: int
    variance: float | None


@dataclass(frozen=True)
class Verdict:
    """One metric that got worse than allowed, or is gone, with the values in words."""

    name: str
    before: float | None
    now: float | None
    worse_by: float | None
    tolerance: float
    learnt: bool = False


def worsening(metric: str, before: float, now: float) -> float:
    """By how much ``now`` is worse than ``before``, positive for worse.

    What should be 1 (calibration slope) or 0 (calibration intercept) worsens with its distance from there.
    """
    ideal = {"calibration_slope": 1.0, "calibration_intercept": 0.0}.get(metric)
    if ideal is not None:
        return abs(now - ideal) - abs(before - ideal)
    return before - now if METRICS[metric].higher_is_better else now - before


def judged_names(baseline: Mapping[str, float | None], tolerances: Mapping[str, float]) -> list[str]:
    """The metrics of the baseline that are judged, in order."""
    names = []
    for name, before in sorted(baseline.items()):
        metric, group = name.rsplit("/", 1)[1], name.rsplit("/", 2)[1]
        # The gap and the prevalence have no better and worse of their own.
        if metric in tolerances and before is not None and group != "target_minus_source":
            names.append(name)
    return names


def compare(
    baseline: dict[str, float | None],
    current: dict[str, float | None],
    tolerances: dict[str, float],
    learnt: Mapping[str, float] | None = None,
) -> tuple[list[Verdict], int]:
    """The regressions, and how many metrics were judged.

    A metric that had a value and has none now is a regression: a gate that is silent about it is no gate.

    Args:
        baseline: by name.
        current: by name.
        tolerances: by metric.
        learnt: by name; what is not in it has its metric's tolerance.
    """
    regressions = []
    names, learnt = judged_names(baseline, tolerances), learnt or {}
    for name in names:
        metric, before = name.rsplit("/", 1)[1], baseline[name]
        allowed = learnt.get(name, tolerances[metric])
        now = current.get(name)
        worse = None if now is None or before is None else worsening(metric, before, now)
        if worse is None or worse > allowed:
            regressions.append(Verdict(name, before, now, worse, allowed, name in learnt))
    return regressions, len(names)


def learn(
    names: list[str], before: Mapping[str, Seeds], now: Mapping[str, Seeds], params: FromSeeds
) -> dict[str, float]:
    """The tolerances that can be learnt, by the names of metrics.

    Under no change but of the seeds, all of the metrics stay within theirs with a probability of at least 1 -
    ``false_alarm`` (a t interval for the difference of two means, Bonferroni over the metrics; see
    ``metrics.tolerance``).

    Args:
        names: of the metrics that are judged.
        before: the baseline's trainings.
        now: the present ones; what is not there is not judged by the seeds.
        params: the section.
    """
    known = [
        name
        for name in names
        if name in now
        and (seeds := before.get(name)) is not None
        and seeds.num_runs >= params.least_seeds
        # Trainings that are alike have no chance in them (a probe is solved, not trained).
        and (seeds.variance or 0.0) > _ALIKE
    ]
    found: dict[str, float] = {}
    for metric in sorted({name.rsplit("/", 1)[1] for name in known}):
        own = [name for name in known if name.rsplit("/", 1)[1] == metric]
        runs = [before[name].num_runs for name in own]
        of_models = {name.split("/", 2)[0]: number for name, number in zip(own, runs, strict=True)}
        variances, freedom = moderated(
            np.array([before[name].variance for name in own], dtype=np.float64),
            np.array(runs, dtype=np.float64) - 1.0,
            float(sum(number - 1 for number in of_models.values())),
        )
        # What is best inside may worsen either way.
        sides = 2 if METRICS[metric].higher_is_better is not None else 1
        alpha = sides * params.false_alarm / len(known)
        made = tolerance(variances, freedom, runs, [now[name].num_runs for name in own], alpha)
        found |= dict(zip(own, made.tolist(), strict=True))
    return found


def to_markdown(regressions: list[Verdict], judged: int, learnt: int | None = None, least_seeds: int = 0) -> str:
    """A summary that a pull request can show.

    Args:
        regressions: what got worse.
        judged: how many metrics.
        learnt: how many of them had a tolerance from the seeds; None where none was asked for.
        least_seeds: that were asked for.
    """
    told = ""
    if learnt is not None:
        told = f"\nTolerances of {learnt} metrics are learnt from the variance between training seeds"
        rest = judged - learnt
        told += (
            f"; {rest} have the fixed one: the baseline or this run holds no variance for them, of {least_seeds} or "
            "more trainings that differ.\n"
            if rest
            else ".\n"
        )
    if not regressions:
        return f"**Gate passed**: {judged} metrics, none worse than its tolerance.\n{told}"
    lines = [
        f"**Gate failed**: {len(regressions)} of {judged} metrics are worse than the baseline allows.",
        "",
        "| run / finding / split / group / metric | baseline | now | worse by | allowed |",
        "|---|---:|---:|---:|---:|",
    ]
    for verdict in regressions:
        cells = [verdict.before, verdict.now, verdict.worse_by, verdict.tolerance]
        shown = ["none" if value is None else f"{value:.4f}" for value in cells]
        lines.append(f"| {verdict.name} | {' | '.join(shown)}{', from seeds' if verdict.learnt else ''} |")
    return "\n".join(lines) + "\n" + told


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--metrics", type=Path, default=Path("reports/metrics.json"), metavar="PATH")
    arguments.add_argument("--runs", type=Path, default=Path("data/predict/runs.parquet"), metavar="PATH")
    arguments.add_argument(
        "--spread", type=Path, default=Path("data/evaluate/spread.parquet"), metavar="PATH", help="of training seeds"
    )
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
    now: dict[str, Seeds] = {}
    if params.from_seeds is not None:
        now = _seeds(args.spread, set(judged_names(current["metrics"], params.tolerances)))
        current["seeds"] = now
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
    learnt: dict[str, float] | None = None
    if params.from_seeds is not None:
        before = {name: Seeds(*own) for name, own in baseline.get("seeds", {}).items()}
        learnt = learn(judged_names(baseline["metrics"], params.tolerances), before, now, params.from_seeds)
    regressions, judged = compare(baseline["metrics"], current["metrics"], params.tolerances, learnt)
    if judged == 0:
        raise PipelineError("no metric of the baseline has a tolerance in gate.tolerances: nothing was judged")
    least = params.from_seeds.least_seeds if params.from_seeds else 0
    print(to_markdown(regressions, judged, None if learnt is None else len(learnt), least))
    sys.exit(1 if regressions else 0)


def _initialisation(path: Path) -> dict[str, str]:
    """What each backbone's runs that are not from scratch started from."""
    runs = read_table(Runs, path)
    started = runs[runs["initialisation"] != "scratch"]
    return dict(sorted(set(zip(started["backbone"], started["weights_name"], strict=True))))


def _seeds(path: Path, names: set[str]) -> dict[str, Seeds]:
    """How far trainings lie apart, of the metrics named."""
    rows = read_table(SeedSpread, path).to_dict("records")
    return {
        name: Seeds(int(row["num_runs"]), None if np.isnan(row["variance"]) else float(row["variance"]))
        for row in rows
        if (name := flat_name(row)) in names
    }


def _read(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise PipelineError(f"{path} is not there; {advice}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise PipelineError(f"{path} is no JSON ({error}); {advice}") from None


if __name__ == "__main__":
    cli.run(main)
