"""Figures with hover values: cells of tables as JSON, which the page's script hands to plotly.js as they are.

A figure is a dictionary of panels; a panel's traces name their table and columns and hold, point by point, the row's
key, the cells that are drawn (``raw``) and the cells that are told (``shown``, as the page's tables show them).
Only where a thing stands and what it looks like is decided here and in the script.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.reporting import cells, figures
from pipeline.reporting.study import ELSEWHERE, HOME, SCRATCH, Family, Row, Study, label, slug

Spec = dict[str, Any]
Keyed = tuple[tuple[Any, ...], Row]

_SYMBOLS = {
    "o": "circle", "X": "x", "p": "pentagon", "s": "square", "P": "cross", "D": "diamond", "^": "triangle-up",
    "v": "triangle-down", "<": "triangle-left", ">": "triangle-right", "h": "hexagon", "d": "diamond-tall",
    "8": "octagon",
}  # fmt: skip
# The figures' colours, and what stands for them on a dark ground.
_DARK = {
    "#4d4d4d": "#c6ccd1", "#0072B2": "#5db4ea", "#56B4E9": "#8fd0f5", "#D55E00": "#ff9a56", "#009E73": "#4fd0a8",
    "#E69F00": "#f2bd4b", "#CC79A7": "#e6a5c8", "#332288": "#a99cf0", "#882255": "#e58ab4",
}  # fmt: skip
_AUROC, _DIFFERENCE = "AUROC", "Difference in AUROC"
_WITH_LIMITS = [("Interval from", "ci_low"), ("to", "ci_high")]


class Library(NamedTuple):
    """plotly.js as it is packed into the page."""

    version: str
    sha256: str  # of the file, in hexadecimal digits
    source: str  # its hash as a content security policy names it
    packed: str  # gzip in base64


@cache
def library() -> Library:
    """The plotting library that the package ``plotly`` carries."""
    package = distribution("plotly")
    script = package.locate_file("plotly/package_data/plotly.min.js").read_bytes()  # type: ignore[attr-defined]
    # Hashed as the browser sees it: text.
    digest = hashlib.sha256(script.decode("utf-8").encode("utf-8"))
    packed = base64.b64encode(gzip.compress(script, 9, mtime=0)).decode("ascii")
    return Library(package.version, digest.hexdigest(), csp_source(script), packed)


def csp_source(script: bytes) -> str:
    """A script's name in a content security policy: whatever has another hash does not run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode('ascii')}'"


def as_json(spec: Spec) -> Markup:
    """A figure as JSON that can stand inside a script element."""
    text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704 - escaped


def specs(study: Study) -> dict[str, Spec]:
    """All figures that can be shown with hover values, under the names of their pictures."""
    made: dict[str, Spec] = {}
    if any(study.rows("histograms")):
        made["histograms"] = histograms(study)
    for backbone in study.backbones:
        made[slug("curves", backbone)] = training_curves(study, backbone)
        for finding in study.findings:
            names = slug(finding, backbone)
            for against in study.baselines(finding, backbone):
                made[f"verdict-{names}-{slug(against)}"] = verdicts(study, finding, backbone, against)
            made[f"labels-{names}"] = efficiency(study, finding, backbone, "labelled_patients")
            made[f"costs-{names}"] = efficiency(study, finding, backbone, "train_tflop")
            made[f"forest-{names}"] = forest(study, finding, backbone)
            made[f"reliability-{names}"] = reliability(study, finding, backbone)
    for name, make in (("stress", stress), ("abstention", abstention)):
        for finding, backbone in study.subjects(name):
            made[f"{name}-{slug(finding, backbone)}"] = make(study, finding, backbone)
    return {name: spec for name, spec in made.items() if spec["panels"]}


def verdicts(study: Study, finding: str, backbone: str, against: str) -> Spec:
    """Per place the differences in AUROC from a baseline, with the margin and the verdicts."""
    judged = study.judged(finding, backbone, against)
    families = [family for family in study.main_families(backbone) if family in judged] or judged
    hover = [("Difference", "difference"), *_WITH_LIMITS, ("Verdict", "verdict"), ("p, differs", "p_holm")]
    hover += [("p, equivalent", "p_equivalence_holm"), ("Patients", "num_patients")]
    panels = []
    for place in study.verdict_places(finding):
        keys = {f: (f.run, finding, place.split, place.group, against) for f in families}
        rows = {f: (key, row) for f, key in keys.items() if (row := study.row("verdicts", key)) is not None}
        if not rows:
            continue
        traces = [
            _trace(study, family, "verdicts", [found], {"x": "difference"}, hover, word="verdict")
            for family, found in rows.items()
        ]
        key, row = next(iter(rows.values()))
        band = {"table": "verdicts", "key": cells.join_key(key), "column": "margin", "raw": row["margin"]}
        panels.append(_panel(place.title, traces, _DIFFERENCE, rows=_labels(families, rows), line=0, band=band))
    return _figure(study, families, panels, share="x")


def forest(study: Study, finding: str, backbone: str) -> Spec:
    """Per place AUROC, and its difference from the scratch twin."""
    families = study.families_of(backbone)
    panels = []
    for place in study.places(finding):
        for metric, line in (("auroc", 0.5), ("auroc_minus_scratch", 0)):
            keys = {f: (f.run, finding, place.split, place.group, metric) for f in families}
            rows = {f: (key, row) for f, key in keys.items() if (row := study.row("metrics", key)) is not None}
            hover = [(label(metric), "value"), *_WITH_LIMITS, ("Patients", "num_patients"), ("Images", "num_images")]
            traces = [
                _trace(study, family, "metrics", [found], {"x": "value"}, hover) for family, found in rows.items()
            ]
            if traces:
                of = "" if metric == "auroc" else ", minus scratch"
                panels.append(
                    _panel(
                        place.title + of, traces, label(metric), rows=_labels(families, rows), line=line, group=metric
                    )
                )
    return _figure(study, families, panels, share="x")


def efficiency(study: Study, finding: str, backbone: str, column: str) -> Spec:
    """AUROC over label budgets or training costs, at home and elsewhere."""
    words = {"labelled_patients": "Labelled patients", "train_tflop": "Tera floating point operations"}[column]
    hover = [(_AUROC, "value"), *_WITH_LIMITS, (words, column)]
    families: dict[Family, None] = {}
    panels = []
    for place in (HOME, ELSEWHERE):
        traces = []
        for family, rows in study.points(finding, backbone, place).items():
            families[family] = None
            for budget, dash in (("share", "solid"), ("shots", "dot")):
                own = [row for row in rows if row[column] and row["budget"] in (budget, "all")]
                if any(row["budget"] == budget for row in own) or (own and budget == "share"):
                    keyed = [((row["run"], finding, row["split"], row["group"]), row) for row in own]
                    axes = {"x": column, "y": "value"}
                    traces.append(_trace(study, family, "efficiency", keyed, axes, hover, dash=dash))
        if traces:
            panels.append(_panel(study.named(place).title, traces, words, _AUROC, x_type="log", dodge=True))
    return _figure(study, families, panels, share="y")


def reliability(study: Study, finding: str, backbone: str) -> Spec:
    """Observed rate over mean predicted probability, at home and elsewhere."""
    families = study.main_families(backbone)
    hover = [("Mean predicted probability", "mean_probability"), ("Observed rate", "observed_rate")]
    hover += [("Images", "num_images")]
    panels = []
    for place in (HOME, ELSEWHERE):
        traces = []
        for family in families:
            rows = list(study.rows("calibration", run=family.run, finding=finding, group=place.group))
            if rows:
                axes = {"x": "mean_probability", "y": "observed_rate"}
                traces.append(_trace(study, family, "calibration", rows, axes, hover))
        if traces:
            title = study.named(place).title
            panels.append(_panel(title, traces, "Mean predicted probability", "Observed rate", diagonal=True))
    return _figure(study, families, panels, share="y")


def training_curves(study: Study, backbone: str) -> Spec:
    """Loss by epoch: a panel a method and phase; training dashed, validation solid, the epoch kept as a ring."""
    panels = []
    families: dict[Family, None] = {}
    for (method, phase), runs in figures.loss_panels(study, backbone).items():
        family = study.family(f"{backbone}-{method}")
        families[family] = None
        traces = []
        for run, rows in runs.items():
            keyed = [((run, phase, row["epoch"]), row) for row in rows]
            for column, dash in (("train_loss", "dash"), ("id_val_loss", "solid")):
                words = "Training" if column == "train_loss" else "Validation at home"
                hover, axes = [("Epoch", "epoch"), (words, column)], {"x": "epoch", "y": column}
                more = {"dash": dash, "label": run, "marker": "none" if len(rows) > 1 else "small"}
                if any(row[column] is not None for row in rows):
                    traces.append(_trace(study, family, "curves", keyed, axes, hover, **more))
            kept = [found for found in keyed if found[1]["kept"] and found[1]["id_val_loss"] is not None]
            if kept:
                hover, axes = (
                    [("Kept epoch", "epoch"), ("Validation at home", "id_val_loss")],
                    {"x": "epoch", "y": "id_val_loss"},
                )
                traces.append(_trace(study, family, "curves", kept, axes, hover, label=run, marker="ring"))
        title = label(method) + (f": {label(phase)}" if phase != "finetune" else "")
        panels.append(_panel(title, traces, "Epoch", "Loss"))
    return _figure(study, families, panels, share="y")


def histograms(study: Study) -> Spec:
    """Share of pixels by grey value, a line a hospital."""
    traces: list[Spec] = []
    series: list[Spec] = []
    for number, site in enumerate(study.sites):
        rows = list(study.rows("histograms", site=site))
        dash = "solid" if site in study.sources else ("dash", "dot", "dashdot")[number % 3]
        if rows:
            hover = [("Grey", "grey"), ("Share of pixels", "share")]
            trace = _points(study, "histograms", rows, {"x": "grey", "y": "share"}, hover)
            traces.append(trace | {"series": len(series), "dash": dash, "marker": "none"})
            colour = figures.SITE_COLOURS[number % len(figures.SITE_COLOURS)]
            series.append({"name": label(site), "colour": colour, "dark": _DARK[colour], "symbol": "circle"})
    panel = _panel("", traces, "Grey (0 black, 1 white)", "Share of pixels per bin", y_type="log", y_format=".2~%")
    return {"panels": [panel], "series": series, "share": ""}


def stress(study: Study, finding: str, backbone: str) -> Spec:
    """AUROC by severity: a panel a kind of shift, a line a method."""
    families = study.families_in("stress", backbone)
    hover = [(_AUROC, "value"), *_WITH_LIMITS, ("Severity", "severity"), ("Strength", "strength"), ("of", "unit")]
    panels = []
    for kind in study.distinct("stress", "kind", finding=finding):
        found = {f: list(study.rows("stress", run=f.run, finding=finding, kind=kind)) for f in families}
        axes = {"x": "severity", "y": "value"}
        traces = [_trace(study, f, "stress", rows, axes, hover) for f, rows in found.items() if rows]
        if traces:
            panels.append(_panel(label(kind).capitalize(), traces, "Severity", _AUROC, dodge=True))
    return _figure(study, families, panels, share="y")


def abstention(study: Study, finding: str, backbone: str) -> Spec:
    """AUROC by the share of images kept: a panel a score and hospital, a line a method."""
    wanted = {"finding": finding, "backbone": backbone}
    methods = study.methods_in("abstention", **wanted)
    families = [study.family(f"{backbone}-{method}") for method in methods]
    hover = [(_AUROC, "auroc"), *_WITH_LIMITS, ("Images kept", "coverage"), ("Images", "num_images")]
    panels = []
    for score in study.distinct("abstention", "score", **wanted):
        for site in study.sites_in("abstention", score=score, **wanted):
            traces = []
            for family in families:
                rows = list(study.rows("abstention", score=score, site=site, method=family.method, **wanted))
                if rows:
                    axes = {"x": "coverage", "y": "auroc"}
                    traces.append(_trace(study, family, "abstention", rows[::-1], axes, hover))
            side = "Home" if site in study.sources else "Elsewhere"
            title = f"{side}: {label(site)}; {label(score)}"
            panels.append(_panel(title, traces, "Images kept", _AUROC, x_format=".0%", backwards=True, dodge=True))
    return _figure(study, families, panels, share="y")


def _labels(families: Sequence[Family], rows: Mapping[Family, Any]) -> list[str]:
    return [family.label for family in families if family in rows]


def _figure(study: Study, families: Iterable[Family], panels: list[Spec], share: str) -> Spec:
    """``share`` names the axis that has one range in all panels; a panel's traces name families, here numbered."""
    look = figures.looks(study)
    order = list(families)
    for panel in panels:
        for trace in panel["traces"]:
            trace["series"] = order.index(trace["series"])
    series = []
    for family in order:
        colour, marker = look.get(family.base, look[SCRATCH])
        series.append({"name": family.label, "colour": colour, "dark": _DARK[colour], "symbol": _SYMBOLS[marker]})
    return {"panels": panels, "series": series, "share": share}


def _panel(title: str, traces: list[Spec], x: str, y: str = "", **more: Any) -> Spec:
    return {"title": title, "traces": traces, "x": x, "y": y, **more}


def _trace(
    study: Study, family: Family, table: str, found: Sequence[Keyed], axes: Mapping[str, str],
    hover: Sequence[tuple[str, str]], **more: Any,
) -> Spec:  # fmt: skip
    return _points(study, table, found, axes, hover) | {"series": family} | more


def _points(
    study: Study, table: str, found: Sequence[Keyed], axes: Mapping[str, str], hover: Sequence[tuple[str, str]]
) -> Spec:
    """Rows as points; limits are drawn where the table has them and they are told."""
    drawn = dict(axes)
    told = [column for _, column in hover]
    if "ci_low" in told:
        drawn |= {"low": "ci_low", "high": "ci_high"}
    return {
        "table": table,
        **drawn,
        "keys": [cells.join_key(key) for key, _ in found],
        "raw": {column: [row[column] for _, row in found] for column in drawn.values()},
        "hover": [list(pair) for pair in hover],
        "shown": {column: [cells.shown(row, column, study.min_cell) for _, row in found] for column in told},
    }
