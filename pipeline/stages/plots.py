"""What `dvc plots` draws, as small flat files: ROC, calibration, confusion and AUROC by hospital, learning curves.

From the tables of the stages before, without image or model; dvc.yaml says how each is drawn. With ``--baseline`` and
``--adapt`` their predictions join those of ``predict``, as in ``evaluate``.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import cli
from pipeline.analysis.aggregate import to_studies
from pipeline.analysis.evaluation import EvaluateParams, name_families
from pipeline.analysis.plot_data import SmallCells, full_families, learning_curves, place_tables, site_auroc
from pipeline.params import check_versions, load_names, load_params, read_params_file, section_of
from pipeline.tables.contract import read_table, read_tables
from pipeline.tables.evaluation import Metrics, Thresholds
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Curves, Runs

DECIMALS = 6  # finer than any picture, and a third of the bytes


def to_json(table: pd.DataFrame) -> str:
    """Rows in their order, a line each; a null stays null. DVC draws no empty list: then one row of nulls."""
    rows: list[dict[str, Any]] = [
        {str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")
    ] or [dict.fromkeys(map(str, table.columns))]
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return round(value, DECIMALS) if isinstance(value, float) else value


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        predict="the folder of predict",
        evaluate="the folder of evaluate",
        out="folder for the files",
    )
    arguments.add_argument("--baseline", type=Path, metavar="PATH", help="the folder of baseline")
    arguments.add_argument("--adapt", type=Path, metavar="PATH", help="the folder of all remedies")
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    params = load_params(EvaluateParams, "evaluate", args.params)
    min_cell = load_params(SmallCells, "report", args.params).min_cell
    folders = [args.predict, *([args.baseline] if args.baseline else [])]
    if args.adapt:
        backbones = load_names("backbones", args.params)
        some = section_of(read_params_file(args.params), "remedies", args.params)
        remedies = load_names("remedies", args.params) if some else []
        folders += [args.adapt / f"{backbone}-{remedy}" for backbone in backbones for remedy in remedies]
    predictions = read_tables(Predictions, [folder / "predictions.parquet" for folder in folders])
    if params.unit == "study":
        predictions = to_studies(predictions, params.aggregate)
    families = full_families(name_families(predictions))
    thresholds = read_table(Thresholds, args.evaluate / "thresholds.parquet")
    metrics = read_table(Metrics, args.evaluate / "metrics.parquet")
    curves = read_table(Curves, args.predict / "curves.parquet")
    runs = read_table(Runs, args.predict / "runs.parquet")
    tables = {
        **place_tables(predictions, thresholds, families, params.reliability_bins, min_cell),
        "auroc": site_auroc(metrics, families),
        "learning": learning_curves(curves, runs),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (args.out / f"{name}.json").write_text(to_json(table), encoding="utf-8")
    print(f"{sum(map(len, tables.values()))} rows in {len(tables)} files")


if __name__ == "__main__":
    cli.run(main)
