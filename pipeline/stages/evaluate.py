"""Metrics with intervals, at home and away, and what they say of transfer: from tables, without image, model or GPU."""

import json
from pathlib import Path

import pandas as pd

from pipeline import cli
from pipeline.analysis import efficiency
from pipeline.analysis.aggregate import to_studies
from pipeline.analysis.evaluation import EvaluateParams, evaluate, name_families
from pipeline.analysis.overfitting import overfitting
from pipeline.analysis.verdict import VerdictParams, judge
from pipeline.params import check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs


def flat_metrics(metrics: pd.DataFrame) -> dict[str, float | None]:
    """The rows that have an interval's text (families, not single seeds) as ``run/finding/split/group/metric``.

    DVC shows and compares this file; it nests at dots, which names here do not have.
    """
    rows = metrics[~metrics["run"].str.contains(r"-seed\d")]
    return {
        "/".join((row["run"], row["finding"], row["split"], row["group"], row["metric"])): (
            None if pd.isna(row["value"]) else row["value"]
        )
        for row in rows.to_dict("records")
    }


def trials_of(runs: pd.DataFrame) -> dict[str, int | None]:
    """Per run how many learning rates or penalties were tried; None where it is not recorded."""
    return {
        str(run): None if pd.isna(number) else int(number)
        for run, number in zip(runs["run"], runs["trials"], strict=True)
    }


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        predict="the folder of predict",
        out="folder for metrics, calibration, thresholds, verdicts, efficiency, savings and overfitting",
        metrics="file for the flat metrics that DVC shows",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    params = load_params(EvaluateParams, "evaluate", args.params)
    bounds = load_params(VerdictParams, "verdict", args.params)
    sides = load_params(SplitParams, "split", args.params)
    runs = read_table(Runs, args.predict / "runs.parquet")
    curves = read_table(Curves, args.predict / "curves.parquet")
    predictions = read_table(Predictions, args.predict / "predictions.parquet")
    if params.unit == "study":
        predictions = to_studies(predictions, params.aggregate)
    result = evaluate(predictions, params, sides.source, sides.target)
    write_table(Metrics, result.metrics, args.out / "metrics.parquet")
    write_table(Calibration, result.calibration, args.out / "calibration.parquet")
    write_table(Thresholds, result.thresholds, args.out / "thresholds.parquet")
    write_table(Verdicts, judge(result.comparisons, trials_of(runs), bounds), args.out / "verdicts.parquet")
    families = name_families(predictions)
    points = efficiency.points(result.metrics, families, runs)
    write_table(Efficiency, points, args.out / "efficiency.parquet")
    write_table(LabelSavings, efficiency.savings(points, families), args.out / "savings.parquet")
    write_table(Overfitting, overfitting(curves, families), args.out / "overfitting.parquet")
    _write_json(flat_metrics(result.metrics), args.metrics)
    print(f"{len(result.metrics)} metrics")


def _write_json(values: dict[str, float | None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
