"""AUROC of every cell of the site x site matrix: labels join the predictions of ``matrix`` here, and only here.

Resamples, their seed and the confidence are those of section ``evaluate``; a case is an image, whatever its ``unit``.
"""

from pipeline import cli
from pipeline.analysis.evaluation import EvaluateParams
from pipeline.analysis.transfer_matrix import scores
from pipeline.params import check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.labels import Labels
from pipeline.tables.matrix import MatrixPredictions, MatrixRows, MatrixScores


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        matrix="one backbone's folder of matrix",
        labels="the folder of all sites' labels",
        out="folder for the scores",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    params = load_params(EvaluateParams, "evaluate", args.params)
    sites = load_params(SplitParams, "split", args.params).sites
    rows = plain_text(read_table(MatrixRows, args.matrix / "rows.parquet"))
    predictions = plain_text(read_table(MatrixPredictions, args.matrix / "predictions.parquet"))
    labels = plain_text(read_tables(Labels, [args.labels / site / "labels.parquet" for site in sites]))
    found = scores(predictions, rows, labels, sites, params.resamples, params.seed, params.confidence)
    write_table(MatrixScores, found, args.out / "scores.parquet")
    defined = sum("value" in row for row in found)
    print(f"{defined} of {len(found)} cells are defined")


if __name__ == "__main__":
    cli.run(main)
