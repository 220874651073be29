"""Join one site's label file to its images, under pseudonyms; a corrected label rereads no DICOM."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd
from pydantic import Field
from tqdm import tqdm

from pipeline import cli
from pipeline.datasets.common import LabelRow
from pipeline.datasets.registry import load_site
from pipeline.key import load_key
from pipeline.params import Name, ParamsError, StrictParams, load_params
from pipeline.tables import Exclusions, Instances, LabelIssues, Labels, read_table, write_table

_LABEL: dict[str | None, int] = {"present": 1, "absent": 0}


class LabelsParams(StrictParams):
    """Section ``labels``: the findings that every site's file must have a column for."""

    findings: list[Name] = Field(min_length=1)


def join_labels(
    rows: Iterable[tuple[str, str, LabelRow]],
    instances: pd.DataFrame,
    findings: list[str],
    copies: Mapping[str, str],
) -> tuple[list[dict[str, object]], Counter[str]]:
    """Labels of all images, null where no row names them or rows contradict each other, and what was wrong.

    Args:
        rows: (column of ``instances``, pseudonym, row) per row of the file.
        instances: the site's, as in ``tables.Instances``.
        findings: wanted.
        copies: source of a byte-identical copy to the source that was kept, whose labels these are as well.

    Returns:
        rows of ``tables.Labels``, one an image and finding; and counts of ``tables.LABEL_ISSUES``.
    """
    issues: Counter[str] = Counter()
    groups: dict[str, dict[str, list[str]]] = {}
    given: dict[str, tuple[str, LabelRow]] = {}
    found: dict[tuple[str, str], list[int | None]] = {}
    for column, target, row in rows:
        if column not in groups:
            groups[column] = instances.groupby(column)["image_id"].agg(list).to_dict()
        issues.update(row.issues)
        issues["uncertain_value"] += "uncertain" in row.labels.values()
        kept = copies.get(target, target)
        first_target, earlier = given.setdefault(kept, (target, row))
        if earlier.labels != row.labels:
            issues["conflicting_rows"] += 1
        elif earlier is not row and first_target == target:  # a copy with a row of its own is no flaw
            issues["duplicate_row"] += 1
        image_ids = groups[column].get(kept, [])
        if not image_ids:
            issues["unknown_image"] += 1
        for image_id in image_ids:
            for finding in findings:
                found.setdefault((image_id, finding), []).append(_LABEL.get(row.labels.get(finding)))
    labels = []
    for image_id in instances["image_id"]:
        for finding in findings:
            values = {value for value in found.get((image_id, finding), []) if value is not None}
            labels.append(
                {
                    "image_id": image_id,
                    "finding": finding,
                    "label": values.pop() if len(values) == 1 else None,
                }
            )
    return labels, +issues


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(__doc__, ingest="the site's folder of ingest", out="folder for labels and issues")
    arguments.add_argument("--site", required=True)
    args = arguments.parse_args()
    findings = load_params(LabelsParams, "labels", args.params).findings
    key = load_key(args.params)
    adapter, site = load_site(args.site, args.params)
    lacking = [finding for finding in findings if finding not in site.labels.columns]
    if lacking:
        raise ParamsError(
            f"sites.{args.site}.labels.columns: no column named for {lacking}, which labels.findings asks for; "
            f"it has {sorted(site.labels.columns)}"
        )
    instances = read_table(Instances, args.ingest / "instances.parquet")
    file_rows = list(adapter.read_labels(site, args.params.parent))
    rows = (
        (*adapter.label_target(site, args.site, key, row), row)
        for row in tqdm(file_rows, desc=f"labels {args.site}", unit="row", mininterval=0.5)
    )
    excluded = read_table(Exclusions, args.ingest / "exclusions.parquet").dropna(subset="duplicate_of")
    copies = dict(zip(excluded["source_id"], excluded["duplicate_of"], strict=True))
    labels, issues = join_labels(rows, instances, findings, copies)
    write_table(Labels, labels, args.out / "labels.parquet")
    counted = [{"site": args.site, "issue": issue, "count": count} for issue, count in issues.items()]
    write_table(LabelIssues, counted, args.out / "issues.parquet")
    annotated = sum(row["label"] is not None for row in labels)
    told = ", ".join(f"{count} x {issue}" for issue, count in sorted(issues.items())) or "none"
    print(f"{args.site}: {annotated} of {len(labels)} labels given; issues in the file: {told}")


if __name__ == "__main__":
    cli.run(main)
