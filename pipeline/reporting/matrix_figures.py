"""Figures of who trains and who tests: the site x site matrix, and AUROC at home against AUROC elsewhere."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.reporting import cells
from pipeline.reporting.figures import FAINT, INK, MUTED, Sheet, looks, short
from pipeline.reporting.study import ELSEWHERE, HOME, Row, Study, label

_COLOURS = "cividis"  # told apart with any colour vision, and in grey
_LOWEST = 0.4  # of the colours; below is as dark
_SIDE, _PER_ROW = 1.25, 2
_UNKNOWN = ("#4d4d4d", "o")  # the look of a method that has none


def heat_map(study: Study, finding: str, backbone: str, method: str) -> Figure:
    """AUROC by training hospital (down) and tested hospital (across), in colours and in figures."""
    wanted = {"finding": finding, "backbone": backbone, "method": method}
    rows = [("single_source", site) for site in study.matrix_sites("single_source", **wanted)]
    left_out = study.matrix_sites("leave_one_out", **wanted)
    sites = [site for site in study.sites if site in left_out or any(site == row for _, row in rows)]
    lines = [*rows, *([("leave_one_out", "")] if left_out else [])]
    width, height = _SIDE * len(sites), 0.62 * len(lines)
    sheet = Sheet(
        max(2.6 + width, 8.2),
        height + 0.85,
        f"Trained here, tested there: {label(finding)}, {backbone}, {label(method)}",
        "AUROC with its interval. Framed: trained and tested at one hospital, on different patients.",
        study.not_imagenet,
    )
    axes = sheet.axes(2.3, 0.65, width, height, xlim=(0, len(sites)), ylim=(len(lines), 0))
    colours = colormaps[_COLOURS]
    for line, (protocol, row) in enumerate(lines):
        for column, site in enumerate(sites):
            key = (backbone, method, protocol, finding, row or site, site)
            _square(axes, column, line, study.row("matrix_scores", key), colours, study.min_cell)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(sites)) + 0.5, [short(label(site), 14) for site in sites])
    names = [f"on {short(label(row), 20)}" if row else "on all but the tested" for _, row in lines]
    axes.set_yticks(np.arange(len(lines)) + 0.5, names)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK, labelbottom=False, labeltop=True)
    sheet.text(0.12, sheet.head + 0.5, "Trained", weight="bold", va="center")
    sheet.text(2.3, sheet.head + 0.2, "Tested at", weight="bold", va="center")
    return sheet.figure


def _square(axes: Axes, column: int, line: int, row: Row | None, colours: Any, min_cell: int) -> None:
    value = None if row is None else row["value"]
    if row is None or value is None:
        axes.add_patch(Rectangle((column, line), 1, 1, facecolor="white", edgecolor=FAINT, lw=0.8, hatch="////"))
        words = "not tested" if row is None else "not defined"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(column + 0.5, line + 0.5, words, ha="center", va="center", size=8, color=INK, bbox=box)
        return
    shade = colours(min(max((value - _LOWEST) / (1 - _LOWEST), 0.0), 1.0))
    luminance = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2]
    ink = "white" if luminance < 0.5 else "black"
    axes.add_patch(Rectangle((column, line), 1, 1, facecolor=shade, edgecolor="white", lw=1.2))
    if row["in_distribution"]:
        frame = Rectangle((column + 0.03, line + 0.05), 0.94, 0.9, fill=False, edgecolor=ink, lw=1.6)
        axes.add_patch(frame)
    limits = [cells.shown(row, name, min_cell) for name in ("ci_low", "ci_high")]
    below = "" if row["ci_low"] is None else " to ".join(limits)
    at = column + 0.5
    axes.text(at, line + (0.4 if below else 0.5), cells.shown(row, "value", min_cell), ha="center", va="center",
              color=ink, weight="bold", size=10)  # fmt: skip
    axes.text(at, line + 0.72, below, ha="center", va="center", color=ink, size=7.5)


def home_and_away(study: Study, finding: str) -> Figure:
    """A panel a network: AUROC elsewhere over AUROC at home, a large mark a method, a small one a training."""
    look, side, pitch = looks(study), 3.5, 4.9
    backbones = [backbone for backbone in study.backbones if study.families_of(backbone)]
    lines = -(-len(backbones) // _PER_ROW)
    methods = list(dict.fromkeys(family.method for one in backbones for family in study.main_families(one)))
    alone = len(backbones) == 1  # then there is room beside it for the legend
    legend_lines = 0 if alone else -(-len(methods) // 4)
    sheet = Sheet(
        10.4,
        lines * (side + 0.75) + 0.35 + 0.2 * legend_lines,
        f"At home and elsewhere: {label(finding)}",
        "Large: a method with all labels, with intervals. Small: single trainings. Below the line: worse elsewhere.",
        study.not_imagenet,
    )
    drawn: list[Axes] = []
    handles: dict[str, Any] = {}
    for number, backbone in enumerate(backbones):
        left, top = 0.75 + number % _PER_ROW * pitch, 0.35 + number // _PER_ROW * (side + 0.75)
        first = drawn[0] if drawn else None
        axes = sheet.axes(left, top, side, side, sharex=first, sharey=first)
        drawn.append(axes)
        axes.set_title(backbone, loc="left", fontsize=9, fontweight="bold")
        for (run,), row in study.rows("runs", backbone=backbone):
            colour, marker = look.get(row["method"], _UNKNOWN)
            point = _point(study, finding, run)
            if point is not None:
                axes.plot(*point, marker=marker, color=colour, ms=3.5, alpha=0.5, mew=0, zorder=2)
        for family in study.main_families(backbone):
            colour, marker = look.get(family.base, _UNKNOWN)
            home, away = (study.metric(family, finding, place, "auroc") for place in (HOME, ELSEWHERE))
            style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "none", "mec": "white", "mew": 0.6}
            handles.setdefault(family.method, axes.plot([], [], label=short(family.label, 32), ms=7, **style)[0])
            if home is None or away is None or home["value"] is None or away["value"] is None:
                continue
            x, y = home["value"], away["value"]
            if home["ci_low"] is not None and home["ci_high"] is not None:
                axes.plot([home["ci_low"], home["ci_high"]], [y, y], color=colour, lw=0.9, alpha=0.7, zorder=3)
            if away["ci_low"] is not None and away["ci_high"] is not None:
                axes.plot([x, x], [away["ci_low"], away["ci_high"]], color=colour, lw=0.9, alpha=0.7, zorder=3)
            axes.plot([x], [y], ms=8, zorder=4, **style)
        axes.grid()
        axes.tick_params(labelsize=8, length=3)
        axes.set_xlabel("AUROC at home", fontsize=8)
        if number % _PER_ROW == 0:
            axes.set_ylabel("AUROC elsewhere", fontsize=8)
    if drawn:
        low = min(drawn[0].get_xlim()[0], drawn[0].get_ylim()[0])
        limits = max(low, 0.0), min(max(drawn[0].get_xlim()[1], drawn[0].get_ylim()[1]), 1.01)
        drawn[0].set(xlim=limits, ylim=limits)  # of all: they share them
    for axes in drawn:
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    place = (0.75 + pitch, 0.35, 4.5, side) if alone else (0.65, lines * (side + 0.75) + 0.25, 9.6, 0.2 * legend_lines)
    legend = sheet.axes(*place)
    legend.axis("off")
    legend.legend(
        handles=list(handles.values()),
        loc="upper left",
        ncols=1 if alone else 4,
        borderpad=0,
        borderaxespad=0,
        fontsize=8,
    )
    return sheet.figure


def _point(study: Study, finding: str, run: str) -> tuple[float, float] | None:
    found = [study.row("metrics", (run, finding, place.split, place.group, "auroc")) for place in (HOME, ELSEWHERE)]
    values = [None if row is None else row["value"] for row in found]
    return None if values[0] is None or values[1] is None else (values[0], values[1])
