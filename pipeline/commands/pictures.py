"""Pictures of one study, to show elsewhere: funnel of files, transfer against scratch, calibration at home and away.

Run it in the study's folder after `dvc repro`. They are the report's own figures, smaller; no image of a patient is in
them. `make pictures` draws those of the README.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.params import load_params, nearest
from pipeline.reporting import figures
from pipeline.reporting.study import BASELINES, SCRATCH, Study, slug
from pipeline.splits import SplitParams
from pipeline.stages.report import ReportParams
from pipeline.tables.contract import Table, read_table
from pipeline.tables.evaluation import Calibration, Efficiency, Metrics, Verdicts
from pipeline.tables.images import Flow
from pipeline.tables.training import Runs

DPI = 200  # about 2,080 pixels wide: sharp in print, and below 150 kB
_TABLES: tuple[tuple[str, type[Table], str], ...] = (
    ("flow", Flow, "split"),
    ("metrics", Metrics, "evaluate"),
    ("verdicts", Verdicts, "evaluate"),
    ("calibration", Calibration, "evaluate"),
    ("efficiency", Efficiency, "evaluate"),
    ("runs", Runs, "predict"),
)


def read_study(params: Path, data: Path) -> Study:
    """As much of a study as the pictures need.

    Args:
        params: its params.yaml.
        data: the folder of its outputs.
    """
    words = load_params(ReportParams, "report", params)
    sides = load_params(SplitParams, "split", params)
    return Study(
        title=words.title,
        notice=words.notice,
        sources=tuple(sides.source),
        targets=tuple(sides.target),
        min_cell=words.min_cell,
        frames={name: read_table(contract, data / folder / f"{name}.parquet") for name, contract, folder in _TABLES},
        params_yaml="",
        versions={},
        data_hashes={},
    )


def draw(study: Study, against: str) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files.

    Raises:
        PipelineError: nothing was compared with ``against``.
    """
    yield "funnel", figures.to_png(figures.funnel, study, dpi=DPI)
    for finding in study.findings:
        for backbone in study.backbones:
            of, names = (study, finding, backbone), slug(finding, backbone)
            known = study.baselines(finding, backbone)
            if against not in known:
                raise PipelineError(
                    f"{finding}, {backbone}: nothing was compared with '{against}'{nearest(against, known)}"
                )
            yield f"transfer-{names}", figures.to_png(figures.verdicts, *of, against, dpi=DPI)
            yield f"calibration-{names}", figures.to_png(figures.reliability, *of, dpi=DPI)


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="default: data")
    arguments.add_argument("--against", default=SCRATCH, help=f"{' or '.join(BASELINES)}; default: {SCRATCH}")
    arguments.add_argument("--out", type=Path, default=Path("reports/pictures"), metavar="FOLDER")
    args = arguments.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, png in draw(read_study(args.params, args.data), args.against):
        (args.out / f"{name}.png").write_bytes(png)
        print(f"{args.out / name}.png, {len(png):,} bytes")


if __name__ == "__main__":
    cli.run(main)
