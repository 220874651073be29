"""Figures of domain shift: small multiples of AUROC along a shift of acquisition, and along abstention."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.reporting.figures import MUTED, Sheet, looks, short
from pipeline.reporting.study import Family, Row, Study, label

_LEGEND_PER_ROW = 4
_WIDTH, _HEIGHT, _LINE, _BETWEEN = 9.75, 1.75, 2.6, 0.5  # inches: all panels, one, from line to line, side by side
_STRESS_PER_ROW, _ABSTENTION_PER_ROW = 3, 4
_UNKNOWN_LOOK = ("#4d4d4d", "o")

Curves = Mapping[Family, Sequence[tuple[float, Row]]]  # x and the row that has value and limits there
Panel = tuple[str, Curves]


def stress(study: Study, finding: str, backbone: str) -> Figure:
    """AUROC by severity: a panel a kind of shift, a line a method."""
    found: dict[str, dict[Family, list[tuple[float, Row]]]] = {}
    for family in study.families_in("stress", backbone):
        for _, row in study.rows("stress", finding=finding, run=family.run):
            found.setdefault(row["kind"], {}).setdefault(family, []).append((row["severity"], row))
    sheet, panels = _multiples(
        study,
        f"Acquisition shift reproduced: {label(finding)}, {backbone}",
        "AUROC at home by severity of a shift made on the same images, with intervals. Severity 0: as they are.",
        [(label(kind), curves) for kind, curves in found.items()],
        "value",
        _STRESS_PER_ROW,
    )
    for axes in panels:
        axes.set_xlabel("Severity", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return sheet.figure


def abstention(study: Study, finding: str, backbone: str) -> Figure:
    """AUROC by the share of images kept: a panel a score and hospital, a line a method."""
    wanted = {"finding": finding, "backbone": backbone}
    found: list[Panel | None] = []
    for score in study.distinct("abstention", "score", **wanted):
        found += [None] * (-len(found) % _ABSTENTION_PER_ROW)  # each score begins a line
        for site in study.sites_in("abstention", score=score, **wanted):
            curves: dict[Family, list[tuple[float, Row]]] = {}
            for method in study.methods_in("abstention", **wanted):
                rows = study.rows("abstention", score=score, site=site, method=method, **wanted)
                curves[study.family(f"{backbone}-{method}")] = [(row["coverage"], row) for _, row in rows]
            side = "Home" if site in study.sources else "Elsewhere"
            found.append((f"{side}: {short(label(site), 16)}\n{label(score)}", curves))
    sheet, panels = _multiples(
        study,
        f"Abstention: {label(finding)}, {backbone}",
        "AUROC on the images that lie nearest to the training images by a score, with intervals.",
        found,
        "auroc",
        _ABSTENTION_PER_ROW,
    )
    for axes in panels:
        axes.set_xlabel("Images kept", fontsize=8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].invert_xaxis()  # of all: they share it
    return sheet.figure


def _multiples(
    study: Study, title: str, subtitle: str, panels: Sequence[Panel | None], column: str, per_row: int
) -> tuple[Sheet, list[Axes]]:
    """Panels of equal axes, None for a place left free, with one legend below; ``column`` holds the value."""
    look = looks(study)
    families = list(dict.fromkeys(family for panel in panels if panel for family in panel[1]))
    lines, legend_lines = -(-len(panels) // per_row), -(-len(families) // _LEGEND_PER_ROW)
    sheet = Sheet(10.4, lines * _LINE + 0.3 + 0.2 * legend_lines, title, subtitle, study.not_imagenet)
    drawn: list[Axes] = []
    pitch = _WIDTH / per_row
    handles: dict[Family, Any] = {}
    for number, panel in enumerate(panels):
        if panel is None:
            continue
        left, top = 0.65 + number % per_row * pitch, 0.4 + number // per_row * _LINE
        first = drawn[0] if drawn else None
        axes = sheet.axes(left, top, pitch - _BETWEEN, _HEIGHT, sharex=first, sharey=first)
        drawn.append(axes)
        axes.set_title(panel[0], loc="left", fontsize=9, fontweight="bold")
        every = [x for points in panel[1].values() for x, _ in points]
        for turn, family in enumerate(families):
            colour, marker = look.get(family.base, _UNKNOWN_LOOK)
            # Side by side, so that no interval hides another.
            aside = (turn - (len(families) - 1) / 2) * 0.012 * (max(every) - min(every))
            points = [(x + aside, row) for x, row in sorted(panel[1].get(family, []), key=lambda point: point[0])]
            points = [(x, row) for x, row in points if row[column] is not None]
            for x, row in points:
                if row["ci_low"] is not None and row["ci_high"] is not None:
                    axes.plot([x, x], [row["ci_low"], row["ci_high"]], color=colour, lw=1.0, alpha=0.6, zorder=2)
            style: dict[str, Any] = {
                "marker": marker,
                "color": colour,
                "ms": 4.5,
                "lw": 1.2,
                "mec": "white",
                "mew": 0.6,
            }
            axes.plot([x for x, _ in points], [row[column] for _, row in points], zorder=3, **style)
            handles[family] = axes.plot([], [], label=short(family.label, 32), **style)[0]
        axes.grid(axis="y")
        axes.tick_params(labelsize=8, length=3)
        if number % per_row == 0:
            axes.set_ylabel("AUROC", fontsize=8)
    for axes in drawn:
        if axes.get_ylim()[0] <= 0.5:
            axes.axhline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    legend = sheet.axes(0.6, lines * _LINE + 0.2, 9.6, 0.2 * legend_lines)
    legend.axis("off")
    legend.legend(
        handles=list(handles.values()),
        loc="upper left",
        ncols=_LEGEND_PER_ROW,
        borderpad=0,
        borderaxespad=0,
        fontsize=8,
    )
    return sheet, drawn
