"""Join one site's label files to its images, under pseudonyms; a corrected label rereads no DICOM.

A definite reading of an image goes before an uncertain one, and that before a row which leaves the finding open.
Policies of params say what becomes of readings that contradict each other, of what is only uncertain and of what is
only left open. Readers and dates are kept, as pseudonyms and shifted days.
"""

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm import tqdm

from pipeline import cli
from pipeline.datasets.common import LabelRow
from pipeline.datasets.registry import check_remote, load_site
from pipeline.dicom.deidentify import pseudonym, shifted_day
from pipeline.key import load_key
from pipeline.params import Name, ParamsError, StrictParams, load_params
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.files import Exclusions, Instances
from pipeline.tables.labels import LabelIssues, Labels, Readings, Terms

# What a row says of a finding, as a number; 0 where it does not speak of it.
_OPEN, _ABSENT, _PRESENT, _UNCERTAIN = 1, 2, 3, 4
_CODES = {None: _OPEN, "absent": _ABSENT, "present": _PRESENT, "uncertain": _UNCERTAIN}
_NUM_CODES = 5
_PLACE = ["unit", "reader", "date"]


class LabelsParams(StrictParams):
    """Section ``labels``: the findings that every site's files must have a column for, and policies.

    ``uncertain``: the label where nothing definite is said (U-Ignore, U-Ones and U-Zeros of Irvin et al., CheXpert,
    AAAI 2019). ``missing``: where rows leave the finding open; an image without a row has no label in any case.
    ``conflict``: where rows or readers contradict each other; present: one says so; absent: not all say present;
    majority: what more than half of the definite readings say.
    """

    findings: list[Name] = Field(min_length=1)
    uncertain: Literal["missing", "present", "absent"] = "missing"
    missing: Literal["missing", "absent"] = "missing"
    conflict: Literal["missing", "present", "absent", "majority"] = "missing"


class Rows(NamedTuple):
    """The rows of a site's label files.

    Attributes:
        frame: unit (int), reader, date (``YYYYMMDD``) and a code a finding (int8).
        units: what rows are about, by number: a column of ``Instances`` and the pseudonym there.
        issues: counts of ``tables.labels.LABEL_ISSUES``.
    """

    frame: pd.DataFrame
    units: list[tuple[str, str]]
    issues: Counter[str]


def collect_rows(rows: Iterable[LabelRow], locate: Callable[[LabelRow], tuple[str, str]], findings: list[str]) -> Rows:
    """Take in rows one by one; of their text only readers and dates stay.

    Args:
        rows: of all files of the site.
        locate: a row to the column of ``Instances`` that it is about, and the pseudonym there.
        findings: wanted.
    """
    issues: Counter[str] = Counter()
    units: dict[tuple[str, str], int] = {}
    places = []
    codes = bytearray()
    for row in rows:
        issues.update(row.issues)
        day = _iso_date(row.date) if row.date else None
        issues["invalid_date"] += bool(row.date) and day is None
        places.append((units.setdefault(locate(row), len(units)), row.reader, day))
        codes += bytes([_CODES[row.labels[finding]] if finding in row.labels else 0 for finding in findings])
    values = np.frombuffer(bytes(codes), dtype=np.int8).reshape(len(places), len(findings))
    issues["uncertain_value"] += int((values == _UNCERTAIN).any(axis=1).sum())
    frame = pd.DataFrame(places, columns=_PLACE, dtype=object).astype({"unit": int})
    return Rows(pd.concat([frame, pd.DataFrame(values, columns=findings)], axis=1), list(units), issues)


@lru_cache(maxsize=2**16)
def _iso_date(text: str) -> str | None:
    """``YYYYMMDD`` of an ISO 8601 date or time, extended or basic; None where it is none."""
    try:
        return datetime.date.fromisoformat(re.split(r"[T ]", text.strip(), maxsplit=1)[0]).strftime("%Y%m%d")
    except ValueError:
        return None


def match_rows(rows: Rows, instances: pd.DataFrame, copies: Mapping[str, str]) -> Rows:
    """The rows that speak of images, each once, with all that is wrong counted.

    Args:
        rows: of ``collect_rows``.
        instances: the site's, as in ``tables.files.Instances``.
        copies: source of a byte-identical copy to the source that was kept, whose labels these are as well.
    """
    issues = rows.issues + Counter(duplicate_row=int(rows.frame.duplicated().sum()))
    source_of = dict(zip(instances["image_id"], instances["source_id"], strict=True))
    there = {column: set(instances[column].dropna()) for column in {column for column, _ in rows.units}}
    units: dict[tuple[str, str], int] = {}
    renumbered = []
    for column, target in rows.units:
        if column == "image_id":  # a SOP instance is a file: its label is about all its frames
            place = ("source_id", source_of.get(target, ""))
            known = target in source_of
        else:
            place = (column, copies.get(target, target))
            known = place[1] in there[column]
        renumbered.append(units.setdefault(place, len(units)) if known else -1)
    frame = rows.frame.assign(unit=np.array(renumbered, dtype=int)[rows.frame["unit"]])
    issues["unknown_image"] += int((frame["unit"] < 0).sum())
    frame = frame[frame["unit"] >= 0].drop_duplicates(ignore_index=True)
    against = np.zeros(len(frame), dtype=int)  # 1: another reader's earlier row, 2: the same reader's
    for finding in frame.columns.drop(_PLACE):
        definite = frame.loc[frame[finding].isin((_ABSENT, _PRESENT)), ["unit", "reader", finding]]
        definite["reader"] = definite["reader"].fillna("")
        first = definite.groupby("unit")[["reader", finding]].transform("first")
        found = (definite[finding] != first[finding]) * (1 + (definite["reader"] == first["reader"]))
        against[definite.index] = np.maximum(against[definite.index], found)
    issues["conflicting_readers"] += int((against == 1).sum())
    issues["conflicting_rows"] += int((against == 2).sum())
    return Rows(frame, list(units), issues)


def settle(votes: np.ndarray[Any, np.dtype[np.int64]], params: LabelsParams) -> pd.DataFrame:
    """What the readings of one finding come to.

    Args:
        votes: (N, 5), how many rows say what of each image, by code.
        params: the policies.

    Returns:
        label (1, 0 or null), status (of ``LABEL_STATUSES``), and policy, which set the label ("" for none).
    """
    absent, present = votes[:, _ABSENT], votes[:, _PRESENT]
    label_of = {"missing": np.nan, "absent": 0.0, "present": 1.0}
    majority = np.where(present == absent, np.nan, present > absent)
    conflict = majority if params.conflict == "majority" else np.full(len(votes), label_of[params.conflict])
    cases = {
        "conflict": (absent > 0) & (present > 0),
        "": (absent > 0) | (present > 0),
        "uncertain": votes[:, _UNCERTAIN] > 0,
        "missing": votes[:, _OPEN] > 0,
    }
    conditions = list(cases.values())
    label = np.select(conditions, [conflict, present > 0, label_of[params.uncertain], label_of[params.missing]], np.nan)
    return pd.DataFrame(
        {
            "label": pd.array(label, dtype="Int8"),
            "status": np.select(conditions, ["conflicting", "given", "uncertain", "missing"], "missing"),
            "policy": np.where(np.isnan(label), "", np.select(conditions, list(cases), "")),
        }
    )


def label_images(rows: Rows, instances: pd.DataFrame, params: LabelsParams) -> tuple[pd.DataFrame, Counter[str]]:
    """Labels of all images, with the columns of ``tables.labels.Labels``, and how many of them which policy set.

    Args:
        rows: of ``match_rows``.
        instances: the site's.
        params: findings and policies.
    """
    num_units = len(rows.units)
    # An array a level: which unit speaks of each image, the one after the last where none does.
    speakers = [np.array([numbers.get(value, num_units) for value in instances[column].tolist()], dtype=int)
                for column, numbers in _by_level(rows.units).items()]  # fmt: skip
    frames = []
    for finding in params.findings:
        said = rows.frame["unit"].to_numpy() * _NUM_CODES + rows.frame[finding].to_numpy()
        votes = np.bincount(said, minlength=(num_units + 1) * _NUM_CODES).reshape(-1, _NUM_CODES)
        of_images = sum((votes[units] for units in speakers), np.zeros((len(instances), _NUM_CODES), dtype=np.int64))
        frames.append(settle(of_images, params).assign(image_id=instances["image_id"].to_numpy(), finding=finding))
    labels = pd.concat(frames, ignore_index=True)
    set_by = labels.loc[labels["policy"] != "", "policy"].value_counts()
    issues = Counter({f"set_by_{policy}_policy": int(count) for policy, count in set_by.items()})
    return labels.drop(columns="policy"), issues


def _by_level(units: list[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Column of ``Instances`` to pseudonym to the unit's number."""
    levels: dict[str, dict[str, int]] = {}
    for number, (column, target) in enumerate(units):
        levels.setdefault(column, {})[target] = number
    return levels


def keep_readings(rows: Rows, instances: pd.DataFrame, *, issuer: str, key: bytes) -> pd.DataFrame:
    """What rows with a reader or a date say, with the columns of ``tables.labels.Readings``.

    Args:
        rows: of ``match_rows``.
        instances: the site's.
        issuer: of the patient numbers; readers of two issuers are two.
        key: the study's.
    """
    told = rows.frame[rows.frame["reader"].notna() | rows.frame["date"].notna()]
    frames = [
        instances[["image_id", "patient_id"]].assign(unit=instances[column].map(numbers)).merge(told, on="unit")
        for column, numbers in _by_level(rows.units).items()
    ]
    if not frames:
        return make_table(Readings, [])
    each = pd.concat(frames, ignore_index=True)
    each = each.melt(["image_id", "patient_id", *_PLACE], var_name="finding", value_name="value")
    each["value"] = each["value"].map({code: value for value, code in _CODES.items() if value})
    each = each.dropna(subset="value")
    names = {name: pseudonym(key, "reader", issuer, name) for name in each["reader"].dropna().unique()}
    dated = each[["patient_id", "date"]].dropna().drop_duplicates()
    days = {pair: shifted_day(key, *pair) for pair in dated.itertuples(index=False, name=None)}
    each["reader"] = each["reader"].map(names)
    each["day"] = pd.array([days.get(pair) for pair in zip(each["patient_id"], each["date"], strict=True)], "Int32")
    # The order of rows in the file is of no account.
    each = each.sort_values(["reader", "day", "value"])
    each["reading"] = each.groupby(["image_id", "finding"]).cumcount()
    return each[list(Readings.columns)]


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(__doc__, ingest="the site's folder of ingest", out="folder for the tables")
    arguments.add_argument("--site", required=True)
    args = arguments.parse_args()
    params = load_params(LabelsParams, "labels", args.params)
    key = load_key(args.params)
    adapter, site = load_site(args.site, args.params)
    terms = adapter.terms(site)
    check_remote(args.site, terms, args.params)
    lacking = [finding for finding in params.findings if finding not in site.labels.columns]
    if lacking:
        raise ParamsError(
            f"sites.{args.site}.labels.columns: no column named for {lacking}, which labels.findings asks for; "
            f"it has {sorted(site.labels.columns)}"
        )
    instances = read_table(Instances, args.ingest / "instances.parquet")
    excluded = read_table(Exclusions, args.ingest / "exclusions.parquet").dropna(subset="duplicate_of")
    copies = dict(zip(excluded["source_id"], excluded["duplicate_of"], strict=True))
    file_rows = tqdm(
        adapter.read_labels(site, args.params.parent), desc=f"labels {args.site}", unit="row", mininterval=0.5
    )
    rows = collect_rows(file_rows, lambda row: adapter.label_target(site, args.site, key, row), params.findings)
    rows = match_rows(rows, instances, copies)
    labels, changed = label_images(rows, instances, params)
    readings = keep_readings(rows, instances, issuer=site.issuer or args.site, key=key)
    issues = +(rows.issues + changed)
    write_table(Labels, labels, args.out / "labels.parquet")
    write_table(Readings, readings, args.out / "readings.parquet")
    write_table(Terms, [{"site": args.site, **asdict(terms)}], args.out / "terms.parquet")
    counted = [{"site": args.site, "issue": issue, "count": count} for issue, count in issues.items()]
    write_table(LabelIssues, counted, args.out / "issues.parquet")
    told = ", ".join(f"{count} x {issue}" for issue, count in sorted(issues.items())) or "none"
    print(f"{args.site}: {labels['label'].count()} of {len(labels)} labels given; issues in the files: {told}")


if __name__ == "__main__":
    cli.run(main)
