"""The model card: docs/README.md of a bundle, every figure of it a cell of a table of the same run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"
# In the card's order; the others are in the study's report.
METRICS = ("auroc", "average_precision", "sensitivity", "specificity", "brier", "calibration_slope",
           "calibration_intercept")  # fmt: skip
_POOLED = ("source", "target")
_LABELS = ("num_positive", "num_negative", "num_unknown")

Row = dict[str, Any]


def records(frame: pd.DataFrame) -> list[Row]:
    """A table's rows, null as None."""
    plain = frame.astype(object)
    return [
        {str(name): value for name, value in row.items()} for row in plain.where(plain.notna(), None).to_dict("records")
    ]


def number(value: float | None, decimals: int = 3) -> str:
    """With so many decimals; "undefined" for null."""
    return "undefined" if value is None else f"{value:.{decimals}f}"


def interval(row: Mapping[str, Any], value: str = "value", low: str = "ci_low", high: str = "ci_high") -> str:
    """``value (low to high)``; it says so where no interval can be had."""
    if row[value] is None:
        return number(None)
    if row[low] is None or row[high] is None:
        return f"{number(row[value])} (no interval)"
    return f"{number(row[value])} ({number(row[low])} to {number(row[high])})"


def count(row: Mapping[str, Any], column: str, min_cell: int) -> str:
    """A count; too small a one, or one of too few patients, is not told."""
    value = row[column]
    if 0 < value < min_cell:
        return f"<{min_cell}"
    return "hidden" if value and 0 < row["num_patients"] < min_cell else f"{value:,}"


def composition_rows(rows: Sequence[Row], min_cell: int) -> list[Row]:
    """``Composition`` as text; where one label's count is hidden the next smallest is too, since they add up."""
    made = []
    for row in rows:
        texts = {name: count(row, name, min_cell) for name in ("num_patients", "num_images", *_LABELS)}
        small = [name for name in _LABELS if 0 < row[name] < min_cell]
        others = sorted((name for name in _LABELS if row[name] >= max(min_cell, 1)), key=lambda name: row[name])
        if len(small) == 1 and others:
            texts[others[0]] = "hidden"
        made.append({**row, **texts})
    return made


def total(rows: Iterable[Row], column: str, min_cell: int) -> str:
    """A sum over rows; where one of them is hidden the sum would give it away."""
    values = list(rows)
    if any(0 < row["num_patients"] < min_cell for row in values):
        return "hidden"
    return f"{sum(row[column] for row in values):,}"


def told_groups(rows: Iterable[Row], min_cell: int) -> set[tuple[str, str]]:
    """The (split, group) of subgroups that may be told: not those of too few patients, nor what would give them away.

    Of a column with small levels the next smallest are hidden with them, until two or more that hold ``min_cell``
    patients together are.
    """
    columns: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        column = "+".join(part.partition("=")[0] for part in row["group"].split("+"))
        columns.setdefault((row["split"], column), {})[row["group"]] = row["num_patients"]
    told: set[tuple[str, str]] = set()
    for (split, _), levels in columns.items():
        ordered = sorted(levels, key=lambda name: (levels[name], name))
        hidden = [name for name in ordered if 0 < levels[name] < min_cell]
        while hidden and len(hidden) < len(ordered) and (
            len(hidden) < 2 or sum(levels[name] for name in hidden) < min_cell
        ):  # fmt: skip
            hidden = ordered[: ordered.index(hidden[-1]) + 2]
        told |= {(split, name) for name in set(levels) - set(hidden)}
    return told


def places(metrics: Sequence[Row], finding: str, min_cell: int) -> list[Row]:
    """The table of sites: per split and site its counts, and each of METRICS as text."""
    wanted = [
        row for row in metrics
        if row["finding"] == finding and (row["group"] in _POOLED or row["group"].startswith("site="))
        and row["split"] != "id_val"
    ]  # fmt: skip
    found = _by_place(wanted, METRICS, min_cell)
    small = {row["split"] for row in wanted if row["group"] not in _POOLED and 0 < row["num_patients"] < min_cell}
    for row in found:
        if row["group"] in _POOLED and row["split"] in small:  # a site's could be had by subtraction
            row |= {"num_patients": "hidden", "num_images": "hidden"}
    return found


def subgroups(metrics: Sequence[Row], finding: str, min_cell: int) -> tuple[list[Row], int]:
    """The table of domains and subgroups, and how many groups are not told."""
    wanted = [
        row for row in metrics
        if row["finding"] == finding and "=" in row["group"] and not row["group"].startswith("site=")
        and row["split"] != "id_val"
    ]  # fmt: skip
    told = told_groups((row for row in wanted if row["metric"] == "auroc"), min_cell)
    kept = [row for row in wanted if (row["split"], row["group"]) in told]
    every = {(row["split"], row["group"]) for row in wanted}
    return _by_place(kept, ("auroc", "sensitivity", "specificity"), min_cell), len(every - told)


def undefined_notes(metrics: Sequence[Row]) -> list[str]:
    """Why values in the table of sites are undefined; in a subgroup, few patients are why."""
    shown = (row for row in metrics if row["metric"] in METRICS and row["value"] is None and row["note"])
    placed = (row for row in shown if row["group"] in _POOLED or row["group"].startswith("site="))
    return sorted({f"{row['metric']}, {row['split']} {row['group']}: {row['note']}" for row in placed})


def _by_place(rows: Sequence[Row], metrics: Sequence[str], min_cell: int) -> list[Row]:
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = found.setdefault(
            (row["split"], row["group"]),
            {
                "split": row["split"],
                "group": row["group"],
                "num_patients": count(row, "num_patients", min_cell),
                "num_images": count(row, "num_images", min_cell),
                **dict.fromkeys(metrics, "not applicable"),
            },
        )
        if row["metric"] in metrics:
            place[row["metric"]] = interval(row)
    return [found[key] for key in sorted(found)]


def eval_metrics(metrics: Sequence[Row], min_cell: int) -> dict[str, float | None]:
    """What the card tells, flat, for the metadata: ``finding/split/group/metric`` to value, ci_low and ci_high."""
    groups = [row for row in metrics if "=" in row["group"] and not row["group"].startswith("site=")]
    told = told_groups((row for row in groups if row["metric"] == "auroc"), min_cell)
    flat: dict[str, float | None] = {}
    for row in metrics:
        subgroup = "=" in row["group"] and not row["group"].startswith("site=")
        if row["split"] == "id_val" or row["metric"] not in METRICS or row["group"].startswith("worst_"):
            continue
        if not subgroup or (row["split"], row["group"]) in told:
            name = "/".join(row[part] for part in ("finding", "split", "group", "metric"))
            flat |= {name: row["value"], f"{name}/ci_low": row["ci_low"], f"{name}/ci_high": row["ci_high"]}
    return flat


def render(template: str, **facts: Any) -> str:
    """A template of this package with its facts; a fact that is missing is an error."""
    environment = Environment(  # noqa: S701 - Markdown and text: nothing to escape
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "cell": _cell}
    environment.globals |= {"count": count, "interval": interval}
    return environment.get_template(template).render(**facts)


def _cell(text: object) -> str:
    """Safe inside a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
