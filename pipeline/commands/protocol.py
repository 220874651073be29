"""Seal the study's protocol before its test labels are opened, or show what was sealed and opened.

`seal` checks protocol.yaml against params.yaml and writes both hashes into openings.csv; commit the two files, then
`dvc repro`. `show` prints the protocol, how often the ood_test labels were opened and why. A protocol.yaml:

  hypothesis: Full fine-tuning from ImageNet finds opacities in other hospitals better than training from scratch.
  primary_outcome: {metric: auroc, finding: opacity, split: ood_test, group: target}
  primary_comparison: {backbone: resnet18, method: full_finetune, against: scratch}
  margin: 0.05  # as verdict.margin
  sample_size: 300  # patients tested; may be left out
"""

from pathlib import Path

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.protocol import (
    LOG_FILE,
    PROTOCOL_FILE,
    load_protocol,
    params_digest,
    protocol_digest,
    read_log,
    read_sections,
    seal,
    splits_digest,
    statement,
    write_log,
)
from pipeline.tables.contract import read_table
from pipeline.tables.images import Splits


def test_images(folder: Path) -> str:
    """Hash of the ood_test images of ``split``'s folder; "" where it is not made yet."""
    path = folder / "splits.parquet"
    if not path.is_file():
        return ""
    splits = read_table(Splits, path)
    return splits_digest(splits.loc[splits["split"] == "ood_test", "image_id"])


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("action", choices=["seal", "show"])
    arguments.add_argument("--protocol", type=Path, default=Path(PROTOCOL_FILE), metavar="PATH")
    arguments.add_argument("--log", type=Path, default=Path(LOG_FILE), metavar="PATH")
    arguments.add_argument("--split", type=Path, default=Path("data/split"), metavar="PATH", help="the folder of split")
    arguments.add_argument("--reason", help="why the protocol or the params changed after the labels were opened")
    args = arguments.parse_args()
    sections = read_sections(args.params)
    declared = load_protocol(args.protocol, sections)
    log = read_log(args.log)
    protocol, params = protocol_digest(declared), params_digest(sections)
    if args.action == "seal":
        if declared is None:
            raise PipelineError(f"{args.protocol} declares nothing; --help shows what it has to say")
        longer = seal(log, protocol, params, test_images(args.split), args.reason)
        if len(longer) > len(log):
            write_log(args.log, longer)
            print(f"sealed: commit {args.protocol} and {args.log}")
        else:
            print("sealed already, nothing changed")
        log = longer
    elif declared is not None:
        outcome, comparison = declared.primary_outcome, declared.primary_comparison
        print(declared.hypothesis)
        print(
            f"primary outcome: {outcome.metric} of {outcome.finding}, {outcome.split}, {outcome.group}; "
            f"{comparison.backbone} by {comparison.method} less {comparison.against}, margin {declared.margin}"
        )
    for entry in log:
        print(f"{f'opening {entry.opening}' if entry.opening else 'seal'}: {entry.reason}")
    print(statement(log, protocol, params))


if __name__ == "__main__":
    cli.run(main)
