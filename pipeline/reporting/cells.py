"""How a cell of a table is shown: as text for figures, and as an element of the page that names its origin."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

from markupsafe import Markup

from pipeline.reporting.study import (
    GAP,
    MINUS_NO_PIXELS,
    MINUS_PLAIN,
    NO_PIXELS,
    SCRATCH,
    Family,
    Place,
    Row,
    Study,
    label,
)

DASH = "–"
MINUS = "−"

_THREE_DECIMALS = ("brier", "log_loss", "ece", "threshold", "train_loss", "id_val_loss", "gap", "net_benefit", "mmd2",
                   "home_mmd2")  # fmt: skip
_SIGNED = {
    "auroc_minus_scratch",
    MINUS_NO_PIXELS,
    MINUS_PLAIN,
    "difference",
    "difference_low",
    "difference_high",
    "gap",
}
_SHARES = {"share", "saving"}
_NO_PEOPLE = {"num_parameters", "num_runs", "num_backbones", "num_families", "num_references"}
# A label budget is what the study sets, no count of who is in it: it is told however small.
_BUDGETS = {"labelled_patients", "all_patients"}
_SETTINGS = {"margin", "alpha", "strength"}  # as they were set, not rounded
LEAST_P = 0.0001
MISTAKES_MINUS_CORRECT = "mistakes_minus_correct"  # a group of tables.gallery.MapMeans


def join_key(parts: Iterable[Any]) -> str:
    r"""A row's key as one string: parts joined by "|", with "\" and "|" inside a part escaped by "\"."""
    return "|".join(str(part).replace("\\", "\\\\").replace("|", "\\|") for part in parts)


def number(value: float, decimals: int = 2, signed: bool = False) -> str:
    """A number with a true minus; what would round to zero gets up to four decimals, and is 0 if they are 0 too."""
    enough = next((more for more in range(decimals, 5) if float(f"{value:.{more}f}") != 0), None)
    if enough is None:
        return f"{0:.{decimals}f}"
    return f"{value:{'+' if signed else ''}.{enough}f}".replace("-", MINUS)


def is_small(value: Any, min_cell: int) -> bool:
    """Whether a count is too small to be shown; 0 tells nothing of anybody and is."""
    return isinstance(value, int) and 0 < value < min_cell


def _is_count(column: str) -> bool:
    return column == "count" or (column.startswith("num_") and column not in _NO_PEOPLE)


def count(row: Row, column: str, min_cell: int) -> str:
    """A count as text; too small a count, or a count of too few patients, is not told."""
    value = row[column]
    if value is None:
        return DASH
    if is_small(value, min_cell):
        return f"<{min_cell}"
    if value and is_small(row.get("num_patients"), min_cell):
        return "hidden"
    return f"{value:,}"


def _levels_of_groups(study: Study) -> Iterator[Row]:
    """Domains' and subgroups' patients in the shape of Table 1: finding, split, column and group."""
    for finding in study.findings:
        found = study.rows("metrics", finding=finding, metric="auroc")
        counts = {(split, group): row["num_patients"] for (_, _, split, group, _), row in found}
        for (split, group), number in counts.items():
            of = Place(split, group, "", "").of
            if group in ("source", "target") or (of and not group.startswith("worst_")):
                told = {"site": finding, "split": split, "num_patients": number}
                yield {**told, "variable": of or "total", "level": group}


def suppressed(rows: Iterable[Row], min_cell: int) -> set[tuple[str, str, str, str]]:
    """Keys of Table 1 whose counts and shares are not told.

    A level of too few patients (primary), and the next smallest ones of its variable (complementary) until two or
    more are hidden and hold ``min_cell`` patients together, more than one each: what is left of the total then fits
    several counts.
    A column of too few patients is hidden as a whole, zeros too: they would say what all of its patients are.
    """
    variables: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    columns: dict[tuple[str, str], Row] = {}
    for row in rows:
        variables[row["site"], row["split"], row["variable"]].append(row)
        if row["variable"] == "total":
            columns[row["site"], row["split"]] = row
    hidden: set[tuple[str, str, str, str]] = set()
    for (site, split, variable), levels in variables.items():
        if is_small(columns[site, split]["num_patients"], min_cell):
            hidden |= {(site, split, variable, row["level"]) for row in levels}
            continue
        told = sorted((row for row in levels if row["num_patients"]), key=itemgetter("num_patients", "level"))
        taken = [row for row in told if is_small(row["num_patients"], min_cell)]
        while taken and len(taken) < len(told):
            if sum(row["num_patients"] for row in taken) >= max(min_cell, len(taken) + 1) and len(taken) > 1:
                break
            taken.append(told[len(taken)])
        hidden |= {(site, split, variable, row["level"]) for row in taken}
    return hidden


def shown(row: Row, column: str, min_cell: int) -> str:
    """A cell as text: counts with thousands' commas, numbers with their metric's decimals, null as a dash."""
    value = row[column]
    if value is None:
        return DASH
    if _is_count(column):
        return count(row, column, min_cell)
    if column in _SHARES:
        return f"{100 * value:.1f} %".replace("-", MINUS)
    if column in _BUDGETS:
        return f"{value:,.0f}"
    if column in _SETTINGS:
        return next((text for text in (f"{value:.2f}", f"{value:.3f}") if float(text) == value), f"{value:.4f}")
    if column.startswith("p_"):
        return number(value, 3) if value >= LEAST_P else f"<{LEAST_P}"
    if isinstance(value, float):
        metric = row.get("metric", column)
        return number(value, 3 if metric.startswith(_THREE_DECIMALS) else 2, _is_signed(row, column, metric))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_signed(row: Row, column: str, metric: str) -> bool:
    if "hypothesis" in row and column in ("estimate", "ci_low", "ci_high"):
        return bool(row["hypothesis"] != "label_shift_only")
    if "measure" in row:  # of continual learning: all are differences but one
        return bool(row["measure"] != "final_auroc") or column.startswith("difference")
    # A row of these holds a value and, beside it, a difference: its interval is the value's.
    of_difference = "difference" in row and not {"severity", "in_distribution"} & set(row)
    return (
        metric in _SIGNED
        or row.get("group") in (GAP, MISTAKES_MINUS_CORRECT)
        or (column.startswith("ci_") and of_difference)
    )


def interval(row: Row | None, min_cell: int, column: str = "value") -> str:
    """``value (low to high)`` as text, for figures."""
    if row is None or row[column] is None:
        return DASH
    text = shown(row, column, min_cell)
    if row["ci_low"] is None or row["ci_high"] is None:
        return text
    return f"{text} ({shown(row, 'ci_low', min_cell)} to {shown(row, 'ci_high', min_cell)})"


class Cells:
    """Makes the page's elements; each carries the table, key and column that its text was looked up under."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._suppressed = suppressed((row for _, row in study.rows("table_one")), study.min_cell)
        self._small_groups = suppressed(_levels_of_groups(study), study.min_cell)

    def cell(self, table: str, key: tuple[Any, ...], column: str) -> Markup:
        """One cell. A null says why where the row has a note; a row that is not there says so."""
        row = self._study.row(table, key)
        if row is None:
            return self._dash("", "not evaluated")
        text = shown(row, column, self._study.min_cell)
        origin = Markup('data-table="{}" data-key="{}" data-column="{}"').format(table, join_key(key), column)
        if self._is_hidden(table, key, row, column):
            text = "hidden"
        elif row[column] is None:
            return self._dash(origin, row.get("note") or "no value")
        if text == "hidden" or (_is_count(column) and text.startswith("<")):
            why = (
                "too few patients to be shown"
                if text.startswith("<")
                else "hidden: would tell too much of few patients"
            )
            return Markup('<data class="v small" value="" {} title="{}">{}</data>').format(origin, why, text)
        note = Markup(' title="{}"').format(row["note"]) if column == "value" and row.get("note") else ""
        raw = repr(row[column]) if isinstance(row[column], float) else str(row[column])
        return Markup('<data class="v" value="{}" {}{}>{}</data>').format(raw, origin, note, text)

    def _is_hidden(self, table: str, key: tuple[Any, ...], row: Row, column: str) -> bool:
        if table in ("gallery_counts", "gallery_means"):
            return is_small(row["num_patients"], self._study.min_cell)
        if table == "metrics":
            of = Place(row["split"], row["group"], "", "").of
            few = bool(of) and is_small(row["num_patients"], self._study.min_cell)
            return few or (_is_count(column) and (row["finding"], row["split"], of, row["group"]) in self._small_groups)
        if row[column] is None:
            return False
        if table == "table_one" and (_is_count(column) or column == "share"):
            return key in self._suppressed
        return table in ("table_one", "balance") and is_small(row["num_patients"], self._study.min_cell)

    def metric(self, family: Family, finding: str, place: Place, metric: str, stacked: bool = False) -> Markup:
        """A value and, where there is one, its interval: in one line, or below (``stacked``)."""
        key = (family.run, finding, place.split, place.group, metric)
        row = self._study.row("metrics", key)
        references = (
            family.base == SCRATCH and metric == "auroc_minus_scratch",
            family.backbone == NO_PIXELS and metric == MINUS_NO_PIXELS,
            not self._study.remedy(family) and metric == MINUS_PLAIN,
        )
        if row is None and any(references):
            return self._dash("", "the reference itself")
        quoted = self.quoted("metrics", key, "value", stacked)
        worst = place.group.startswith("worst_")
        if not stacked or not worst or row is None or row["ci_low"] is None or not row["note"]:
            return quoted
        # Which hospital or group was the worst stands in the note.
        return quoted + Markup('<span class="ci which">{}</span>').format(self.cell("metrics", key, "note"))

    def quoted(
        self,
        table: str,
        key: tuple[Any, ...],
        column: str,
        stacked: bool = False,
        limits: tuple[str, str] = ("ci_low", "ci_high"),
    ) -> Markup:
        """A value and, where there is one, its interval: in one line, or below (``stacked``)."""
        row = self._study.row(table, key)
        value = self.cell(table, key, column)
        if row is None or row[column] is None or any(row[limit] is None for limit in limits):
            return value
        if self._is_hidden(table, key, row, column):
            return value
        low, high = (self.cell(table, key, limit) for limit in limits)
        if stacked:
            return Markup('{} <span class="ci">{} to {}</span>').format(value, low, high)
        return Markup("{}&nbsp;({}&nbsp;to&nbsp;{})").format(value, low, high)

    def tally(self, table: str, **where: str) -> Markup:
        """How many rows have these values; the element says which, so that they can be counted again."""
        count = sum(1 for _ in self._study.rows(table, **where))
        wanted = join_key(f"{column}={value}" for column, value in where.items())
        return Markup('<data class="v" value="{}" data-table="{}" data-where="{}">{}</data>').format(
            count, table, wanted, f"{count:,}"
        )

    def method(self, family: Family) -> Markup:
        """A family's method in words, and what departs from the plain case as it stands in the tables."""
        if self._study.remedy(family):
            return Markup('<span class="name">{}</span>').format(self._study.remedy(family))
        return Markup(", ").join([self.name(family.base), *([self.code(family.variant)] if family.variant else [])])

    def name(self, text: str) -> Markup:
        """A name (site, finding, backbone, method, run) in words; names may hold digits that are no result."""
        return Markup('<span class="name">{}</span>').format(label(text))

    def code(self, text: str) -> Markup:
        """A name as it stands in the tables and in params.yaml (backbones, runs)."""
        return Markup('<span class="name">{}</span>').format(text)

    @staticmethod
    def _dash(origin: str | Markup, why: str) -> Markup:
        # Two ways to the reason: the pointer's title, and text for those who listen to the page.
        inner = Markup('{}<span class="aside"> ({})</span>').format(DASH, why)
        if not origin:
            return Markup('<span class="undefined" title="{}">{}</span>').format(why, inner)
        return Markup('<data class="v undefined" value="" {} title="{}">{}</data>').format(origin, why, inner)
