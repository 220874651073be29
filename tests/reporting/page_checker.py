"""Reads a page as a reader would and says what is wrong with it; shares no code with what made the page."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pandas as pd

from pipeline.tables.adaptation import Remedies
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.choice import RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.continual import ContinualMeasures, ContinualScores, ContinualSteps
from pipeline.tables.contract import Table
from pipeline.tables.controls import Controls
from pipeline.tables.diagnosis import Abstention, Diagnoses, Probes
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.files import Deidentification, Notes
from pipeline.tables.gallery import CallCounts, Gallery, MapMeans
from pipeline.tables.images import Flow, Leakage
from pipeline.tables.labels import LabelIssues
from pipeline.tables.matrix import MatrixScores
from pipeline.tables.membership import MembershipAttacks, MembershipExposures
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.quality import Balance, GreyHistograms, OutlierCounts, Outliers, TableOne
from pipeline.tables.stress import StressCurves
from pipeline.tables.training import Curves, Runs

CONTRACTS: dict[str, type[Table]] = {
    "metrics": Metrics,
    "calibration": Calibration,
    "thresholds": Thresholds,
    "verdicts": Verdicts,
    "efficiency": Efficiency,
    "savings": LabelSavings,
    "overfitting": Overfitting,
    "runs": Runs,
    "curves": Curves,
    "flow": Flow,
    "table_one": TableOne,
    "balance": Balance,
    "histograms": GreyHistograms,
    "outliers": Outliers,
    "outlier_counts": OutlierCounts,
    "leakage": Leakage,
    "issues": LabelIssues,
    "notes": Notes,
    "deidentification": Deidentification,
    "baseline_columns": BaselineColumns,
    "mismatch": Mismatch,
    "scores": TransferScores,
    "rank_correlations": RankCorrelations,
    "rungs": SearchRungs,
    "search_outcome": SearchOutcome,
    "protocol": Protocols,
    "openings": Openings,
    "controls": Controls,
    "diagnoses": Diagnoses,
    "probes": Probes,
    "abstention": Abstention,
    "stress": StressCurves,
    "remedies": Remedies,
    "attacks": MembershipAttacks,
    "exposures": MembershipExposures,
    "continual_steps": ContinualSteps,
    "continual_scores": ContinualScores,
    "continual_measures": ContinualMeasures,
    "gallery": Gallery,
    "gallery_counts": CallCounts,
    "gallery_means": MapMeans,
    "matrix_scores": MatrixScores,
}
NO_PEOPLE = ("num_parameters", "num_runs", "num_backbones", "num_families")
NO_PEOPLE += (
    "exposed_at_least", "rung", "epoch", "epochs", "severity", "rank", "entry", "opening", "sample_size",
    "map_rows", "map_columns",
)  # fmt: skip
OF_FEW = ("table_one", "balance", "gallery_counts", "gallery_means")  # hidden as a whole row
SUBGROUP = re.compile(r"(?!site=)[a-z_]+=|worst_(?!site$)")
WHOLE = ("labelled_patients", "all_patients")
METHOD_WORDS = {"l2-sp"}  # a name that is spelled otherwise than in the tables
VOID = {"meta", "img", "br", "hr", "link", "input"}
UNSEEN = {"style", "script", "title"}


class Page(HTMLParser):
    """A page's elements, texts and faults.

    ``texts`` are pairs of visible text and the classes around it; ``data`` pairs of a data element's
    attributes and its text; ``figures`` the data of figures with hover values; ``faults`` what is not well-formed.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, set[str]]] = []
        self.data: list[tuple[dict[str, str], str]] = []
        self.figures: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag, _ in self.stack]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.faults.append(f"<{tag}> repeats an attribute")
        element = (tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)
        if tag == "data":
            self.data.append((element[1], ""))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack[-1][0] != tag:
            self.faults.append(f"</{tag}> closes {self.stack[-1][0] if self.stack else 'nothing'}")
            return
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.stack]
        if tags and tags[-1] == "script" and self.stack[-1][1].get("type") == "application/json":
            self.figures.append(json.loads(data))
        if UNSEEN & set(tags):
            return
        classes = {name for _, attributes in self.stack for name in attributes.get("class", "").split()}
        self.texts.append((data, classes | ({"<data>"} if "data" in tags else set())))
        if "data" in tags and "aside" not in classes:
            attributes, text = self.data[-1]
            self.data[-1] = (attributes, text + data)


@cache
def read(html: str) -> Page:
    """The page, read once."""
    return Page(html)


def untraced(page: Page, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """Texts with a numeral that neither a data element, nor verbatim text, nor a known name accounts for."""
    columns = ("run", "site", "finding", "backbone", "method", "split", "reason", "stage", "metric", "level", "phase")
    columns += ("group", "kind", "cue")
    known: set[str] = set()
    for frame in frames.values():
        for column in set(columns) & set(frame.columns):
            known |= {str(value) for value in frame[column].dropna()}
    known |= {part for run in known for part in run.split("-")}
    known |= {re.sub(r"_percent$", " percent", re.sub(r"(\d)_(\d)", r"\1.\2", text)) for text in known}
    for group in [text for text in known if SUBGROUP.match(text)]:  # a column's name in words, a level as it stands
        together = re.sub(r"(^|\+)([a-z_]+)=", lambda part: f"{part[1]}{part[2].replace('_', ' ')} ", group)
        known.add(re.sub(r"\+(?=[a-z ]+ )", ", ", together))
    spelled = {text.replace("_", " ").lower() for text in known} | known | METHOD_WORDS

    def accounted(text: str, classes: set[str]) -> bool:
        if {"<data>", "verbatim"} & classes:
            return True
        words = text.strip().rpartition(": ")[2]
        return "name" in classes and (words in spelled or words.lower() in spelled)

    return [text for text, classes in page.texts if re.search(r"\d", text) and not accounted(text, classes)]


def misquoted(page: Page, frames: Mapping[str, pd.DataFrame], min_cell: int) -> list[str]:
    """Data elements that do not resolve, or do not show what stands in the table."""
    rows = {
        name: {tuple(str(row[part]) for part in CONTRACTS[name].key): row for row in frame.to_dict("records")}
        for name, frame in frames.items()
    }
    wrong = []
    for attributes, text in page.data:
        if "data-where" in attributes:
            wanted = [part.partition("=")[::2] for part in _split(attributes["data-where"])]
            found = rows[attributes["data-table"]].values()
            number = sum(all(row[column] == value for column, value in wanted) for row in found)
            if not attributes["value"] == text.replace(",", "") == str(number):
                wrong.append(f"{attributes['data-table']} {wanted}: {text!r}, but there are {number}")
            continue
        key = _split(attributes["data-key"])
        row = rows[attributes["data-table"]].get(key)
        what = f"{attributes['data-table']} {key} {attributes['data-column']}: {text!r}"
        if row is None:
            wrong.append(f"{what}: no such row")
        elif attributes["data-table"] in OF_FEW and (0 < row["num_patients"] < min_cell or text == "hidden"):
            if (text, attributes["value"]) != ("hidden", "") and text != "–":
                wrong.append(f"{what}: of {row['num_patients']} patients, and not hidden")
        elif attributes["data-table"] == "metrics" and SUBGROUP.match(row["group"]) and row["num_patients"] < min_cell:
            if (text, attributes["value"]) != ("hidden", ""):
                wrong.append(f"{what}: a group of {row['num_patients']} patients, and not hidden")
        elif not _quotes(row[attributes["data-column"]], attributes, text, min_cell):
            wrong.append(f"{what}: the table has {row[attributes['data-column']]!r}")
    return wrong


def misdrawn(page: Page, frames: Mapping[str, pd.DataFrame], min_cell: int) -> list[str]:
    """What figures with hover values draw or tell that is no cell of a table, and numbers that are no cells."""
    rows = {
        name: {tuple(str(row[part]) for part in CONTRACTS[name].key): row for row in frame.to_dict("records")}
        for name, frame in frames.items()
    }
    wrong = []
    for figure in page.figures:
        for panel in figure["panels"]:
            band = panel.get("band")
            if band and rows[band["table"]][_split(band["key"])][band["column"]] != band["raw"]:
                wrong.append(f"band {band}")
            for trace in panel["traces"]:
                for at, key in enumerate(map(_split, trace["keys"])):
                    row = rows[trace["table"]].get(key)
                    what = f"{trace['table']} {key}"
                    if row is None:
                        wrong.append(f"{what}: no such row")
                        continue
                    drawn = {column: values[at] for column, values in trace["raw"].items()}
                    wrong += [
                        f"{what} {column}: {value!r}, but the table has {row[column]!r}"
                        for column, value in drawn.items()
                        if not (pd.isna(row[column]) if value is None else value == row[column])
                    ]
                    wrong += [
                        f"{what} {column}: told {texts[at]!r}, but the table has {row[column]!r}"
                        for column, texts in trace["shown"].items()
                        if not _tells(row, column, texts[at], min_cell)
                    ]
        wrong += [f"a number beside the cells: {where}" for where in _other_numbers(figure)]
    return wrong


def _tells(row: Mapping[str, Any], column: str, text: str, min_cell: int) -> bool:
    value = row[column]
    attributes = {"data-column": column, "class": "v", "value": str(value), "title": "why"}
    if pd.isna(value):
        attributes |= {"class": "v undefined", "value": ""}
    elif column.startswith("num_") and (text == f"<{min_cell}" or text == "hidden"):
        few = text == "hidden" and 0 < row["num_patients"] < min_cell <= value
        attributes |= {"class": "v small", "value": ""}
        return few or _quotes(value, attributes, text, min_cell)
    if column == "strength":  # as it was set
        return float(text) == round(value, 4)
    return _quotes(value, attributes, text, min_cell)


def _other_numbers(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in ("raw", "series") or (name == "series" and isinstance(value, list)):
                yield from _other_numbers(value, (*path, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _other_numbers(value, (*path, number))
    elif isinstance(tree, int | float) and not isinstance(tree, bool) and not (path[-1] == "line" and tree in (0, 0.5)):
        yield f"{path}: {tree}"


def _quotes(value: Any, attributes: Mapping[str, str], text: str, min_cell: int) -> bool:
    classes = attributes["class"].split()
    if pd.isna(value):
        return text == "–" and attributes["value"] == "" and "undefined" in classes and bool(attributes["title"])
    if isinstance(value, str):
        return text == value == attributes["value"]
    if "small" in classes:
        told = attributes["value"] == "" and value > 0
        return told and ((text == f"<{min_cell}" and value < min_cell) or (text == "hidden" and value >= min_cell))
    plain = text.replace("−", "-").replace(",", "")
    if isinstance(value, int):
        few = attributes["data-column"] not in NO_PEOPLE and 0 < value < min_cell
        return not few and int(plain) == value == int(attributes["value"])
    if text.endswith(" %"):
        return attributes["data-column"] in ("share", "saving") and float(plain.split()[0]) == round(100 * value, 1)
    if plain.startswith("<"):
        return attributes["data-column"].startswith("p_") and plain == "<0.0001" and value < 0.0001
    if attributes["data-column"] in WHOLE:
        return float(plain) == round(value) and float(attributes["value"]) == value
    decimals = len(plain.partition(".")[2])
    return decimals >= 2 and float(plain) == round(value, decimals) and float(attributes["value"]) == value


def _split(joined: str) -> tuple[str, ...]:
    parts, escaped = [""], False
    for character in joined:
        if escaped or character not in "\\|":
            parts[-1] += character
            escaped = False
        elif character == "|":
            parts.append("")
        else:
            escaped = True
    return tuple(parts)
