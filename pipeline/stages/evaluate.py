"""Metrics with intervals, at home and away, and what they say of transfer: from tables, without image, model or GPU.

With ``--baseline`` and ``--adapt`` the predictions of these stages join those of ``predict``; domains and subgroups,
where params name some, are read from ``--ingest``. Beside ``--choice`` and ``--search`` stands what training gave. With
``--openings`` each opening of ood_test's labels is recorded there, with or without a ``--protocol``.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline import cli
from pipeline.analysis import choice, efficiency
from pipeline.analysis.aggregate import to_studies
from pipeline.analysis.evaluation import EvaluateParams, Family, evaluate, name_families
from pipeline.analysis.mismatch import mismatch
from pipeline.analysis.overfitting import overfitting
from pipeline.analysis.subgroups import check_names, columns_of, group_names
from pipeline.analysis.verdict import VerdictParams, judge
from pipeline.errors import PipelineError
from pipeline.params import check_versions, load_names, load_params, read_params_file, section_of
from pipeline.protocol import (
    load_protocol,
    openings_table,
    params_digest,
    protocol_digest,
    protocol_table,
    read_sections,
    record_opening,
    statement,
)
from pipeline.splits import SplitParams
from pipeline.tables.choice import RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.evaluation import (
    Calibration,
    Efficiency,
    LabelSavings,
    Metrics,
    Overfitting,
    SeedSpread,
    Thresholds,
    Verdicts,
    flat_name,
)
from pipeline.tables.files import Instances
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.predictions import Predictions
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.training import Curves, Distances, Runs


def flat_metrics(metrics: pd.DataFrame) -> dict[str, float | None]:
    """The rows that have an interval's text (families, not single seeds) by ``flat_name``, for DVC to compare."""
    rows = metrics[~metrics["run"].str.contains(r"-seed\d")]
    return {flat_name(row): (None if pd.isna(row["value"]) else row["value"]) for row in rows.to_dict("records")}


def trials_of(runs: pd.DataFrame) -> dict[str, int | None]:
    """Per run how many learning rates or penalties were tried; None where it is not recorded."""
    return {
        str(run): None if pd.isna(number) else int(number)
        for run, number in zip(runs["run"], runs["trials"], strict=True)
    }


def group_table(params: EvaluateParams, ingest: Path | None, sites: Sequence[str]) -> pd.DataFrame | None:
    """The groups that params name, of all images; None where they name none.

    Raises:
        PipelineError: it is not said where instances lie. ParamsError: a column is unknown.
    """
    names = check_names(params.domains, params.subgroups)
    if not names:
        return None
    if ingest is None:
        raise PipelineError("evaluate.domains and evaluate.subgroups are read from instances: give --ingest")
    columns = columns_of(names)
    parts = [read_table(Instances, ingest / site / "instances.parquet")[columns] for site in sites]
    return group_names(pd.concat(parts, ignore_index=True), names, params.unit)


def trained(families: Sequence[Family]) -> list[Family]:
    """Those that ``finetune`` trained: a baseline without pixels or a remedy has no curve and no label budget."""
    return [family for family in families if not family.without_chance and not family.setting.adaptation]


def write_openings(args: Namespace, predictions: pd.DataFrame) -> None:
    """Record that ood_test's labels are about to be read, and what the study declared before; see ``protocol.py``."""
    sections = read_sections(args.params)
    declared = load_protocol(args.protocol, sections) if args.protocol else None
    tested = predictions.loc[predictions["split"] == "ood_test", "image_id"]
    log = record_opening(args.openings, declared, sections, tested)
    text = statement(log, protocol_digest(declared), params_digest(sections))
    write_table(Openings, openings_table(log), args.out / "openings.parquet")
    write_table(Protocols, protocol_table(declared, text), args.out / "protocol.parquet")


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        predict="the folder of predict",
        out="folder for metrics, verdicts and the other tables of evaluation",
        metrics="file for the flat metrics that DVC shows",
    )
    for name, text in (
        ("baseline", "the folder of baseline"),
        ("adapt", "the folder of all remedies"),
        ("ingest", "the folder of all sites' ingest"),
        ("choice", "the folder of choice"),
        ("search", "the folder of search"),
        ("protocol", "the study's protocol.yaml"),
        ("openings", "the log of openings, added to"),
    ):
        arguments.add_argument(f"--{name}", type=Path, metavar="PATH", help=text)
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    params = load_params(EvaluateParams, "evaluate", args.params)
    bounds = load_params(VerdictParams, "verdict", args.params)
    sides = load_params(SplitParams, "split", args.params)
    runs = read_table(Runs, args.predict / "runs.parquet")
    curves = read_table(Curves, args.predict / "curves.parquet")
    folders = [args.predict, *([args.baseline] if args.baseline else [])]
    if args.adapt:
        backbones = load_names("backbones", args.params)
        some = section_of(read_params_file(args.params), "remedies", args.params)
        remedies = load_names("remedies", args.params) if some else []
        jobs = [f"{backbone}-{remedy}" for backbone in backbones for remedy in remedies]
        cli.prune(args.adapt, jobs)
        folders += [args.adapt / job for job in jobs]
    predictions = read_tables(Predictions, [folder / "predictions.parquet" for folder in folders])
    if args.openings:
        write_openings(args, predictions)
    if params.unit == "study":
        predictions = to_studies(predictions, params.aggregate)
    groups = group_table(params, args.ingest, sides.sites)
    result = evaluate(predictions, params, sides.source, sides.target, groups)
    write_table(Metrics, result.metrics, args.out / "metrics.parquet")
    write_table(SeedSpread, result.spread, args.out / "spread.parquet")
    write_table(Calibration, result.calibration, args.out / "calibration.parquet")
    write_table(Thresholds, result.thresholds, args.out / "thresholds.parquet")
    # Adjusted apart: whether transfer helps, and whether a remedy helps, are two questions.
    verdicts = [judge(pairs, trials_of(runs), bounds) for pairs in (result.comparisons, result.remedies)]
    write_table(Verdicts, pd.concat(verdicts, ignore_index=True), args.out / "verdicts.parquet")
    families = trained(name_families(predictions))
    points = efficiency.points(result.metrics, families, runs)
    write_table(Efficiency, points, args.out / "efficiency.parquet")
    write_table(LabelSavings, efficiency.savings(points, families), args.out / "savings.parquet")
    write_table(Overfitting, overfitting(curves, families), args.out / "overfitting.parquet")
    distances = read_table(Distances, args.predict / "distances.parquet")
    write_table(Mismatch, mismatch(distances, families), args.out / "mismatch.parquet")
    if args.choice:
        scores = read_table(TransferScores, args.choice / "scores.parquet")
        correlations = choice.rank_correlations(scores, result.metrics, families)
        write_table(RankCorrelations, correlations, args.out / "rank_correlations.parquet")
    if args.search:
        rungs = read_table(SearchRungs, args.search / "rungs.parquet")
        outcome = choice.search_outcome(rungs, result.metrics, families)
        write_table(SearchOutcome, outcome, args.out / "search_outcome.parquet")
    _write_json(flat_metrics(result.metrics), args.metrics)
    print(f"{len(result.metrics)} metrics")


def _write_json(values: dict[str, float | None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
