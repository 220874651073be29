"""What one hospital after another lost and gained: labels join the predictions of ``continual`` here, and only here.

Resamples, their seed and the confidence are those of section ``evaluate``; a case is an image, whatever its ``unit``.
"""

from pipeline import cli
from pipeline.analysis.evaluation import EvaluateParams
from pipeline.analysis.forgetting import scores, sequence_of
from pipeline.params import check_versions, load_params
from pipeline.tables.continual import ContinualMeasures, ContinualPredictions, ContinualScores, ContinualSteps
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.labels import Labels


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        continual="one backbone's folder of continual",
        labels="the folder of all sites' labels",
        out="folder for scores and measures",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    params = load_params(EvaluateParams, "evaluate", args.params)
    steps = plain_text(read_table(ContinualSteps, args.continual / "steps.parquet"))
    predictions = plain_text(read_table(ContinualPredictions, args.continual / "predictions.parquet"))
    paths = [args.labels / site / "labels.parquet" for site in sequence_of(steps)]
    labels = plain_text(read_tables(Labels, paths))
    scored, measured = scores(predictions, steps, labels, params.resamples, params.seed, params.confidence)
    write_table(ContinualScores, scored, args.out / "scores.parquet")
    write_table(ContinualMeasures, measured, args.out / "measures.parquet")
    print(f"{len(scored)} scores, {len(measured)} measures")


if __name__ == "__main__":
    cli.run(main)
