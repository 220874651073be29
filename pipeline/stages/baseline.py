"""Predict the labels without the images, from age, sex, view and scanner: what do the images add?"""

import pandas as pd
from scipy.special import expit
from threadpoolctl import threadpool_limits

from pipeline import cli
from pipeline.analysis.no_pixels import TESTED, BaselineParams, without_pixels
from pipeline.errors import PipelineError
from pipeline.params import check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.files import Instances
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

BACKBONE, METHOD, SEED = "no_pixels", "logistic", 0  # nothing is drawn: the seed is a part of the name alone


def rows_of_run(logits: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Rows of ``tables.predictions.Predictions`` without labels, of ``analysis.no_pixels.WithoutPixels.logits``."""
    return logits.assign(
        probability=expit(logits["logit"]),
        run=f"{BACKBONE}-{METHOD}-seed{SEED}",
        protocol=protocol,
        backbone=BACKBONE,
        method=METHOD,
        seed=SEED,
        label_fraction=1.0,
        draw=0,
        adaptation="none",
    )


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        ingest="the folder of all sites' ingest",
        labels="the folder of all sites' labels",
        split="the folder of split",
        out="folder for predictions, and the columns that they were made from",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scikit-learn", "scipy", path=args.params)
    params = load_params(BaselineParams, "baseline", args.params)
    sides = load_params(SplitParams, "split", args.params)
    for parent in (args.ingest, args.labels):
        cli.prune(parent, sides.sites)
    splits = read_table(Splits, args.split / "splits.parquet")
    if not splits["split"].isin(TESTED).any():
        raise PipelineError(f"nothing to predict: none of {len(splits)} images selects or tests ({', '.join(TESTED)})")
    instances = read_tables(Instances, [args.ingest / site / "instances.parquet" for site in sides.sites])
    home = read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.source])
    with threadpool_limits(1):  # sums of several threads depend on how many there are
        found = without_pixels(instances, home, splits, params)
    rows = rows_of_run(found.logits, "+".join(sides.source))
    # Labels join last: nothing above has seen a target's.
    labels = plain_text(read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.sites]))
    predictions = rows.merge(labels.drop(columns="status"), on=["image_id", "finding"], how="left")
    write_table(Predictions, predictions, args.out / "predictions.parquet")
    write_table(BaselineColumns, found.columns, args.out / "columns.parquet")
    for finding, columns in found.columns[found.columns["used"]].groupby("finding"):
        print(f"{finding}: from {', '.join(columns['column'])}")
    for finding, reason in found.refused.items():
        print(f"{finding}: not predicted; {reason}")
    print(f"{predictions['finding'].nunique()} findings predicted without pixels, {len(found.refused)} refused")


if __name__ == "__main__":
    cli.run(main)
