"""Tables to figures. Sizes are set in inches, so that no label overlaps; the same tables give the same bytes.

Colours are Okabe and Ito's, and two dark ones of Tol's "muted" where those end: told apart with any colour vision;
markers and dashes differ too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from pipeline.reporting import cells
from pipeline.reporting.study import ELSEWHERE, HOME, SCRATCH, STEPS, Family, Place, Row, Study, label

DPI = 160
INK, MUTED, FAINT, GRID = "#1c2126", "#5b6670", "#9aa5af", "#e3e7ea"
ALARM = "#a63c00"
HOME_BAND, ELSEWHERE_BAND = "#eef4f8", "#fbf3ec"
MARGIN_BAND = "#dae1e6"
METHOD_LOOKS = {
    "scratch": ("#4d4d4d", "o"),
    "scratch_converged": ("#4d4d4d", "X"),
    "prototypes": ("#CC79A7", "p"),
    "linear_probe": ("#0072B2", "s"),
    "vgg_head": ("#56B4E9", "P"),
    "full_finetune": ("#D55E00", "D"),
    "lp_ft": ("#009E73", "^"),
    "gradual_unfreeze": ("#E69F00", "v"),
    "layer_decay": ("#332288", "<"),
    "l2_sp": ("#882255", ">"),
}
SPARE_LOOKS = (("#E69F00", "h"), ("#56B4E9", "d"), ("#009E73", "8"))
_VERDICT_INK = {"helps": "#00664b", "harms": ALARM, "equivalent": "#0b5c8a", "undecided": MUTED}
SITE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4d4d4d")
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a name is a "$"
}


@dataclass(frozen=True)
class SiteSamples:
    """Images of one site as the network sees them: (N, H, W), uint8, by label of one finding."""

    site: str
    positives: NDArray[np.uint8]
    negatives: NDArray[np.uint8]


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.style.context(["default", _STYLE]):
        yield


def to_png(draw: Callable[..., Figure], *args: Any, dpi: int = DPI) -> bytes:
    """Call a function of this package and give its figure as PNG, free of dates and versions.

    Charts get a palette, which leaves a third of the bytes; figures that hold images are kept as they are.
    """
    with _style():
        figure = draw(*args)
        canvas = FigureCanvasAgg(figure)
        figure.set(dpi=dpi, facecolor="white")
        canvas.draw()  # type: ignore[no-untyped-call]
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    if not any(axes.images for axes in figure.axes):
        drawn = drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = BytesIO()
    drawn.save(buffer, format="png", dpi=(dpi, dpi))
    return buffer.getvalue()


class Sheet:
    """A figure laid out in inches from its top left corner, with a heading."""

    def __init__(self, width: float, height: float, title: str, subtitle: str, warning: str) -> None:
        self.head = 0.68 + (0.24 if warning else 0.0)
        self.width, self.height = width, height + self.head
        self.figure = Figure(figsize=(self.width, self.height))
        self.text(0.12, 0.14, title, size=12, weight="bold", va="top")
        self.text(0.12, 0.41, subtitle, size=9, color=MUTED, va="top")
        if warning:
            self.text(0.12, 0.64, warning, size=9, weight="bold", color=ALARM, va="top")

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text, in inches from the figure's top left corner."""
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        """Axes below the heading; ``top`` counts from the heading's end."""
        bottom = self.height - self.head - top - height
        rectangle = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(rectangle, **options)


def looks(study: Study) -> dict[str, tuple[str, str]]:
    """Colour and marker per method; unknown methods get spare ones in the order of their names."""
    methods = {family.base for family in study.families}
    methods |= {study.run_family(run)[1] for (run,), _ in study.rows("runs")}
    spare = sorted(methods - set(METHOD_LOOKS))
    return METHOD_LOOKS | {m: SPARE_LOOKS[i % len(SPARE_LOOKS)] for i, m in enumerate(spare)}


def forest(study: Study, finding: str, backbone: str) -> Figure:
    """AUROC per place and method with its interval, and beside it the difference from the scratch twin."""
    families, places, look = study.families_of(backbone), study.places(finding), looks(study)
    row_height = 0.225
    lines: list[tuple[Place, Family | None]] = []
    for place in places:
        lines += [(place, None), *((place, family) for family in families)]
    gap = 0.5  # of a row, between places
    height = (len(lines) + gap * len(places)) * row_height
    sheet = Sheet(
        10.4,
        height + 1.15,
        f"AUROC per hospital: {label(finding)}, {backbone}",
        "Points with intervals. Left: AUROC. Right: difference from the same network trained from scratch.",
        study.not_imagenet,
    )
    sheet.text(2.75, sheet.head + 0.2, "AUROC", weight="bold", va="bottom")
    sheet.text(6.5, sheet.head + 0.2, "AUROC minus scratch", weight="bold", va="bottom")
    panels = {
        "auroc": sheet.axes(2.75, 0.3, 2.2, height),
        "auroc_minus_scratch": sheet.axes(6.5, 0.3, 2.2, height),
    }
    top = (len(lines) + gap * len(places)) * 1.0
    back = sheet.axes(0.1, 0.3, 10.2, height, zorder=-1)
    back.axis("off")
    back.set(xlim=(0.1, 10.3), ylim=(top, 0))
    y = 0.0
    for place in places:
        back.axhspan(
            y + 0.1,
            y + len(families) + 1 + gap - 0.1,
            color=HOME_BAND if place.where == "Home" else ELSEWHERE_BAND,
            lw=0,
        )
        first = study.metric(families[0], finding, place, "auroc")
        patients = "" if first is None else f"  ({cells.shown(first, 'num_patients', study.min_cell)} patients)"
        back.text(0.2, y + 0.75, f"{place.title}{patients}", weight="bold", va="center")
        for offset, family in enumerate(families):
            at = y + 1.6 + offset
            back.text(0.38, at, short(family.label, 36), va="center", color=INK)
            for metric, axes in panels.items():
                row = study.metric(family, finding, place, metric)
                colour, marker = look[family.base]
                _interval(axes, row, at, colour, marker)
                text = cells.interval(row, study.min_cell)
                if row is None and family.base == "scratch":
                    text = "its own reference"
                left = 5.08 if metric == "auroc" else 8.8
                back.text(left, at, text, va="center", size=8, color=INK if row is not None else FAINT)
        y += len(families) + 1 + gap
    for metric, axes in panels.items():
        low, high = _span([row for _, row in study.rows("metrics", finding=finding, metric=metric)], families, places)
        axes.set(ylim=(top, 0), yticks=[], xlim=(low, high), facecolor="none")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.tick_params(axis="x", length=3, labelsize=8)
    reference = {"auroc": (0.5, "chance (0.5)"), "auroc_minus_scratch": (0.0, "no difference")}
    for metric, (at, words) in reference.items():
        axes = panels[metric]
        if axes.get_xlim()[0] <= at <= axes.get_xlim()[1]:
            axes.axvline(at, color=INK, lw=1.1, ls="-" if metric != "auroc" else (0, (4, 3)), zorder=1)
            words = f"line: {words}"
        else:
            words = f"{words} lies outside this axis"
        axes.set_xlabel(words, fontsize=8, color=MUTED)
    note = "Right of the line: better than from scratch. Left of it: worse."
    sheet.text(6.5, sheet.height - 0.16, note, size=8, color=MUTED, va="bottom")
    return sheet.figure


def verdicts(study: Study, finding: str, backbone: str, against: str) -> Figure:
    """Per place and method the difference in AUROC from a baseline, beside the margin, and its verdict."""
    judged = study.judged(finding, backbone, against)
    families = [family for family in study.main_families(backbone) if family in judged] or judged
    places, look = study.verdict_places(finding), looks(study)
    rows = {
        (place, family): row
        for place in places
        for family in families
        if (row := study.verdict(family, finding, place, against)) is not None
    }
    row_height, gap = 0.225, 0.5
    top = sum(1 + gap + len(families) for _ in places)
    height = top * row_height
    sheet = Sheet(
        10.4,
        height + 1.15,
        f"Does transfer help? {label(finding)}, {backbone}",
        f"Difference in AUROC from the same network trained {_lower(label(against))}, with intervals and verdicts.",
        study.not_imagenet,
    )
    panel = sheet.axes(2.75, 0.3, 3.3, height)
    columns = {"difference": 6.15, "verdict": 7.75, "p_holm": 8.55, "p_equivalence_holm": 9.35}
    heads = {
        "difference": "Difference",
        "verdict": "Verdict",
        "p_holm": "p, differs",
        "p_equivalence_holm": "p, equivalent",
    }
    sheet.text(2.75, sheet.head + 0.2, "Difference in AUROC", weight="bold", va="bottom")
    for column, left in columns.items():
        sheet.text(left, sheet.head + 0.2, heads[column], weight="bold", va="bottom")
    back = sheet.axes(0.1, 0.3, 10.2, height, zorder=-1)
    back.axis("off")
    back.set(xlim=(0.1, 10.3), ylim=(top, 0))
    y = 0.0
    for place in places:
        end = y + len(families) + 1 + gap
        back.axhspan(y + 0.1, end - 0.1, color=HOME_BAND if place.where == "Home" else ELSEWHERE_BAND, lw=0)
        first = next((rows[place, family] for family in families if (place, family) in rows), None)
        patients = "" if first is None else f"  ({cells.shown(first, 'num_patients', study.min_cell)} patients)"
        back.text(0.2, y + 0.75, f"{place.title}{patients}", weight="bold", va="center")
        for offset, family in enumerate(families):
            at, row = y + 1.6 + offset, rows.get((place, family))
            back.text(0.38, at, short(family.label, 36), va="center", color=INK)
            _interval(panel, row, at, *look[family.base], column="difference")
            texts = dict.fromkeys(columns, cells.DASH)
            if row is not None:
                texts |= {column: cells.shown(row, column, study.min_cell) for column in columns}
                texts["difference"] = cells.interval(row, study.min_cell, "difference")
            for column, left in columns.items():
                ink = _VERDICT_INK.get(texts["verdict"], FAINT) if column == "verdict" else INK
                weight = "bold" if texts[column] in ("helps", "harms", "equivalent") else "normal"
                back.text(left, at, texts[column], va="center", size=8, color=ink, weight=weight)
        y = end
    margins = [row["margin"] for row in rows.values()]
    ends = [row[end] for row in rows.values() for end in ("difference", "ci_low", "ci_high") if row[end] is not None]
    ends += [sign * margin for margin in margins for sign in (-1.25, 1.25)]
    space = 0.04 * (max(ends) - min(ends))
    panel.set(ylim=(top, 0), yticks=[], xlim=(min(ends) - space, max(ends) + space), facecolor="none")
    panel.axvspan(-max(margins), max(margins), color=MARGIN_BAND, lw=0, zorder=0.5)
    panel.axvline(0.0, color=INK, lw=1.1, zorder=1)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.tick_params(axis="x", length=3, labelsize=8)
    told = sorted({cells.shown(row, "margin", study.min_cell) for row in rows.values()})
    panel.set_xlabel(f"line: no difference; grey: within the margin of {' or '.join(told)}", fontsize=8, color=MUTED)
    note = "Right of the line: better than from scratch. Intervals are not adjusted; p-values are, after Holm."
    sheet.text(2.75, sheet.height - 0.16, note, size=8, color=MUTED, va="bottom")
    return sheet.figure


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _interval(axes: Axes, row: Row | None, y: float, colour: str, marker: str, column: str = "value") -> None:
    if row is None or row[column] is None:
        return
    if row["ci_low"] is not None and row["ci_high"] is not None:
        axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, lw=1.8, solid_capstyle="butt", zorder=2)
    axes.plot([row[column]], [y], marker=marker, ms=6, color=colour, mec="white", mew=0.8, zorder=3)


def _span(rows: Sequence[Row], families: Sequence[Family], places: Sequence[Place]) -> tuple[float, float]:
    """Axis limits around all intervals drawn."""
    wanted = {(f.run, p.split, p.group) for f in families for p in places}
    ends = [
        row[end]
        for row in rows
        if (row["run"], row["split"], row["group"]) in wanted
        for end in ("value", "ci_low", "ci_high")
        if row[end] is not None
    ]
    if not ends:
        return -0.1, 1.0
    margin = max(0.04 * (max(ends) - min(ends)), 0.01)
    return min(ends) - margin, max(ends) + margin


def efficiency(study: Study, finding: str, backbone: str) -> Figure:
    """AUROC by the number of labelled patients, at home and elsewhere, and the savings read off."""
    found = {
        place: [
            row
            for _, row, where in study.savings(finding, backbone)
            if where == place and row["against"] == SCRATCH and row["saving"] is not None
        ]
        for place in (HOME, ELSEWHERE)
    }
    lines = max(len(rows) for rows in found.values())
    sheet, panels = _curves(
        study,
        finding,
        backbone,
        "labelled_patients",
        "What labels buy",
        "AUROC. Dashed: from scratch with all labels. Ring: where a method reaches that; arrow: there, or with fewer.",
        0.12 + 0.19 * (lines + 1) * (lines > 0),
    )
    for (place, axes), left in zip(panels.items(), (0.75, 5.75), strict=False):
        for row in study.points(finding, backbone, place).get(study.family(f"{backbone}-{SCRATCH}"), []):
            if row["budget"] == "all" and row["value"] is not None:
                axes.axhline(row["value"], color=MUTED, lw=1.1, ls=(0, (4, 3)), zorder=1)
        top = sheet.height - 0.19 * (lines + 1) - 0.05
        if found[place]:
            sheet.text(
                left, top, "Labelled patients saved for the AUROC of the dashed line", size=8, color=MUTED, va="top"
            )
        for number, row in enumerate(found[place], start=1):
            family = study.family(row["curve"])
            at, ring = (row["labelled_patients"], row["value"]), "o" if row["bound"] == "reached" else "<"
            axes.plot(*at, ring, mfc="none", mec=looks(study)[family.base][0], mew=1.5, ms=10, zorder=4, clip_on=False)
            few = " (shots)" if row["budget"] == "shots" else ""
            least = "at least " if row["bound"] == "at_least" else ""
            saving = cells.shown(row, "saving", study.min_cell)
            sheet.text(left, top + 0.19 * number, f"{short(family.label, 32)}{few}: {least}{saving}", size=8, va="top")
    return sheet.figure


def costs(study: Study, finding: str, backbone: str) -> Figure:
    """AUROC by the floating point operations of a training, at home and elsewhere."""
    sheet, _ = _curves(
        study,
        finding,
        backbone,
        "train_tflop",
        "What training costs",
        "AUROC by floating point operations of a training (counted, not timed), with intervals.",
        0.1,
    )
    return sheet.figure


_X_LABELS = {
    "labelled_patients": "Labelled patients (logarithmic)",
    "train_tflop": "Tera floating point operations per training (logarithmic)",
}


def _curves(
    study: Study, finding: str, backbone: str, column: str, title: str, subtitle: str, below: float
) -> tuple[Sheet, dict[Place, Axes]]:
    """AUROC over ``column`` on a logarithmic axis, a panel each for home and elsewhere; ``below``: inches left free."""
    places = [place for place in (HOME, ELSEWHERE) if study.points(finding, backbone, place)]
    curves = {place: study.points(finding, backbone, place) for place in places}
    look, families = looks(study), list(dict.fromkeys(f for of_place in curves.values() for f in of_place))
    per_row = 4
    legend_lines = -(-len(families) // per_row)
    width, height = 4.4, 2.9
    sheet = Sheet(
        10.4,
        height + 1.05 + 0.2 * legend_lines + below,
        f"{title}: {label(finding)}, {backbone}",
        subtitle,
        study.not_imagenet,
    )
    panels: dict[Place, Axes] = {}
    handles: dict[Family, Any] = {}
    for number, place in enumerate(places):
        axes = sheet.axes(0.75 + 5.0 * number, 0.3, width, height, sharey=next(iter(panels.values()), None))
        panels[place] = axes
        axes.set_title(study.named(place).title, loc="left", fontsize=10, fontweight="bold")
        every = [row[column] for rows in curves[place].values() for row in rows if row[column]]
        span = np.log10(max(every) / min(every)) if every else 0.0
        for turn, family in enumerate(families):
            colour, marker = look[family.base]
            # Side by side, so that no interval hides another.
            aside = 10 ** ((turn - (len(families) - 1) / 2) * 0.008 * max(span, 0.3))
            drawn = [row for row in curves[place].get(family, []) if row[column] and row["value"] is not None]
            for row in drawn:
                x = row[column] * aside
                if row["ci_low"] is not None and row["ci_high"] is not None:
                    axes.plot([x, x], [row["ci_low"], row["ci_high"]], color=colour, lw=1.1, alpha=0.75, zorder=2)
                axes.plot([x], [row["value"]], marker=marker, ms=5.5, color=colour, mec="white", mew=0.7, zorder=3)
            for budget, dashes in (("share", "-"), ("shots", (0, (1, 1.5)))):
                line = sorted((row[column] * aside, row["value"]) for row in drawn if row["budget"] in (budget, "all"))
                if any(row["budget"] == budget for row in drawn):
                    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, lw=1.3, ls=dashes, zorder=2)
            handles[family] = axes.plot(
                [],
                [],
                marker=marker,
                color=colour,
                ms=5.5,
                lw=1.3,
                mec="white",
                mew=0.7,
                label=short(family.label, 32),
            )[0]
        axes.set(xscale="log", xlabel=_X_LABELS[column])
        if every:
            least = 10 ** (max(0.08 * span, 0.1))
            axes.set_xlim(min(every) / least, max(every) * least)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 2.5 else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8, length=3)
        axes.grid()
        if number == 0:
            axes.set_ylabel("AUROC")
    if not families:
        sheet.text(0.75, sheet.head + 0.6, "No points are recorded.", color=MUTED)
        return sheet, panels
    legend = sheet.axes(0.65, height + 0.85, 9.6, 0.2 * legend_lines)
    legend.axis("off")
    legend.legend(
        handles=list(handles.values()), loc="upper left", ncols=per_row, borderpad=0, borderaxespad=0, fontsize=8
    )
    return sheet, panels


def reliability(study: Study, finding: str, backbone: str) -> Figure:
    """Observed rate over mean predicted probability per bin, at home and elsewhere; of methods with all labels."""
    families, look = study.main_families(backbone), looks(study)
    pooled = {place.group: place.title for place in (HOME, ELSEWHERE)}
    seen = {row["group"] for _, row in study.rows("calibration", finding=finding)}
    groups = [group for group in pooled if group in seen] or sorted(seen)
    side, pitch = 3.7, 4.75
    width = max(0.8 + pitch * len(groups), 6.0)
    per_row = int(width // 2.9)  # of the legend: the longest name is 2.5 inches
    lines = -(-len(families) // per_row)
    sheet = Sheet(
        width,
        side + 1.0 + 0.22 * lines,
        f"Calibration: {label(finding)}, {backbone}",
        "On the dashed line, what is predicted is what is observed; below it, predictions are too high.",
        study.not_imagenet,
    )
    shown = {family.run for family in families}
    rows = [row for _, row in study.rows("calibration", finding=finding) if row["run"] in shown]
    values = [row[c] for row in rows for c in ("mean_probability", "observed_rate") if row[c] is not None]
    limit = min(1.0, max([*values, 0.1]) * 1.08)
    handles: list[Any] = []
    for number, group in enumerate(groups):
        axes = sheet.axes(0.8 + pitch * number, 0.3, side, side)
        axes.plot([0, limit], [0, limit], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        handles = []
        for family in families:
            points = [
                (row["mean_probability"], row["observed_rate"])
                for row in rows
                if (row["run"], row["group"]) == (family.run, group)
                and row["mean_probability"] is not None
                and row["observed_rate"] is not None
            ]
            colour, marker = look[family.base]
            line = axes.plot(
                [x for x, _ in points], [y for _, y in points], marker=marker, color=colour,
                ms=5.5, lw=1.4, mec="white", mew=0.7, label=family.label, clip_on=False,
            )  # fmt: skip
            handles += line
        axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="Mean predicted probability", ylabel="Observed rate")
        axes.set_title(pooled.get(group, label(group)), loc="left", fontsize=10, fontweight="bold")
        axes.grid()
        axes.locator_params(nbins=6)
    legend = sheet.axes(0.65, side + 0.9, width - 0.7, 0.2 * lines)
    legend.axis("off")
    legend.legend(handles=handles, loc="upper left", ncols=per_row, borderpad=0, borderaxespad=0)
    return sheet.figure


def loss_panels(study: Study, backbone: str) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """A panel a method and phase of training, in order; in it each training's epochs, where any loss is known."""
    panels: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for (run, phase, _), row in study.rows("curves"):
        of_backbone, method = study.run_family(run)
        if of_backbone == backbone and (row["train_loss"] is not None or row["id_val_loss"] is not None):
            panels.setdefault((method, phase), {}).setdefault(run, []).append(row)
    order = [family.method for family in study.families_of(backbone)]

    def position(panel: tuple[str, str]) -> tuple[Any, ...]:
        method, phase = panel
        first = min(row["epoch"] for rows in panels[panel].values() for row in rows)
        return (
            order.index(method) if method in order else len(order),
            method,
            first,
            "probe" not in phase,
            phase,
        )

    return {
        panel: {run: sorted(rows, key=lambda row: row["epoch"]) for run, rows in panels[panel].items()}
        for panel in sorted(panels, key=position)
    }


def training_curves(study: Study, backbone: str) -> Figure:
    """Loss by epoch, one panel a method and phase, one line a training."""
    look = looks(study)
    panels = loss_panels(study, backbone)
    names = list(panels)
    per_row, width, height = 3, 2.75, 1.75
    lines = max(1, -(-len(names) // per_row))
    sheet = Sheet(
        10.4,
        lines * (height + 0.85) + 0.45,
        f"Training: {backbone}",
        "Loss (nats per annotated label) by epoch, one line a training. The ring marks the epoch that was kept.",
        study.not_imagenet,
    )
    first: Axes | None = None
    for number, (method, phase) in enumerate(names):
        axes = sheet.axes(
            0.65 + (number % per_row) * (width + 0.5), 0.3 + (number // per_row) * (height + 0.85), width, height,
            sharey=first,
        )  # fmt: skip
        first = first or axes
        colour = look.get(method, ("#4d4d4d", "o"))[0]
        phases = {other for name, other in names if name == method}
        axes.set_title(short(label(method), 36), loc="left", fontsize=9, fontweight="bold")
        if len(phases) > 1:
            corner: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
            axes.text(0.99, 0.97, f"phase: {short(label(phase), 24)}", color=MUTED, size=8, **corner)
        for by_epoch in panels[method, phase].values():
            epochs = [row["epoch"] for row in by_epoch]
            missing = float("nan")
            for column, dashes in (("train_loss", (0, (2, 2))), ("id_val_loss", "-")):
                losses = [missing if row[column] is None else row[column] for row in by_epoch]
                axes.plot(epochs, losses, color=colour, lw=1.4, ls=dashes, marker="." if len(epochs) == 1 else "")
            kept = [(r["epoch"], r["id_val_loss"]) for r in by_epoch if r["kept"] and r["id_val_loss"] is not None]
            axes.plot([x for x, _ in kept], [y for _, y in kept], "o", mfc="white", mec=colour, mew=1.4, ms=6)
        axes.grid(axis="y")
        axes.tick_params(labelsize=8, length=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if number % per_row == 0:
            axes.set_ylabel("Loss", fontsize=8)
        axes.set_xlabel("Epoch", fontsize=8)
    if first is None:
        sheet.text(0.65, sheet.head + 0.6, "No losses are recorded.", color=MUTED)
        return sheet.figure
    legend = sheet.axes(0.65, sheet.height - sheet.head - 0.4, 6.0, 0.3)
    legend.axis("off")
    handles = [
        legend.plot([], [], color=MUTED, lw=1.4, ls=(0, (2, 2)), label="training")[0],
        legend.plot([], [], color=MUTED, lw=1.4, label="validation at home")[0],
        legend.plot([], [], "o", mfc="white", mec=MUTED, mew=1.4, ms=6, label="kept")[0],
    ]
    legend.legend(handles=handles, loc="center left", ncols=3, borderpad=0)
    return sheet.figure


def funnel(study: Study) -> Figure:
    """Per site, what is left after each step and what went, with reasons."""
    sites = [site for site in study.sites if any(study.rows("flow", site=site))]
    lines = {site: flow_lines(study, site) for site in sites}
    row_height, pitch, label_width, bar_width = 0.25, 5.2, 2.05, 1.1
    tallest = [
        max(len(lines[site]) for site in sites[start : start + 2]) * row_height for start in range(0, len(sites), 2)
    ]
    sheet = Sheet(
        10.4,
        sum(tallest) + 0.6 * len(tallest) + 0.1,
        "From files to images and patients",
        "Dark: what is left after a step (images; files where there are no images yet). Orange: what went.",
        study.not_imagenet,
    )
    top = 0.0
    for number, site in enumerate(sites):
        left, height = 0.1 + pitch * (number % 2), len(lines[site]) * row_height
        side = "Home" if site in study.sources else "Elsewhere"
        sheet.text(left, sheet.head + top + 0.3, f"{side}: {label(site)}", size=10, weight="bold", va="bottom")
        axes = sheet.axes(left, top + 0.38, pitch - 0.2, height)
        axes.axis("off")
        axes.set(xlim=(0, pitch - 0.2), ylim=(len(lines[site]), 0))
        drawn = [_flow_count(row, study.min_cell)[0] for _, row in lines[site]]
        longest = max([*drawn, 1])
        for at, ((words, row), length) in enumerate(zip(lines[site], drawn, strict=True)):
            kept = row["kind"] == "remaining"
            indent = 0.0 if kept else 0.15
            axes.text(
                indent,
                at + 0.5,
                short(words, 32),
                va="center",
                size=8.5 if kept else 8,
                color=INK if kept else MUTED,
            )
            size = max(bar_width * length / longest, 0.02 if length else 0.0)
            axes.barh(
                at + 0.5,
                size,
                left=label_width,
                height=0.62 if kept else 0.4,
                color="#33566e" if kept else "#E69F00",
            )
            words = _flow_count(row, study.min_cell)[1]
            if kept and row["num_patients"] is not None:
                words += f", {cells.count(row, 'num_patients', study.min_cell)} patients"
            axes.text(label_width + size + 0.06, at + 0.5, words, va="center", size=8)
        if number % 2 or number == len(sites) - 1:
            top += tallest[number // 2] + 0.6
    return sheet.figure


def flow_lines(study: Study, site: str) -> list[tuple[str, Row]]:
    """A site's rows of the flow in reading order, each with its words: losses, then what they leave."""
    rows = sorted(
        (row for _, row in study.rows("flow", site=site)),
        key=lambda row: (row["step"], row["kind"] == "remaining", row["reason"]),
    )
    return [
        (
            STEPS.get(row["stage"], f"After {label(row['stage'])}")
            if row["kind"] == "remaining"
            else label(row["reason"]),
            row,
        )
        for row in rows
    ]


def _flow_count(row: Row, min_cell: int) -> tuple[float, str]:
    """A bar's length and its text. A count that is not told has a bar of no telling length."""
    for column, unit in (("num_images", "images"), ("num_files", "files")):
        value = row[column]
        if value is not None and (value or row["kind"] == "remaining" or column == "num_files"):
            text = cells.count(row, column, min_cell)
            told = text == f"{value:,}"
            return (float(value) if told else 0.0), f"{text} {unit if value != 1 or not told else unit[:-1]}"
    return 0.0, cells.DASH


def histograms(study: Study) -> Figure:
    """Share of pixels by grey value, all sites in one panel: home in solid lines, elsewhere in dashes."""
    per_row = 4
    lines = -(-len(study.sites) // per_row)
    sheet = Sheet(
        10.4,
        3.85 + 0.2 * lines,
        "Grey values",
        "Share of pixels by stored grey, without padding, on a logarithmic scale. Solid: home. Dashed: elsewhere.",
        study.not_imagenet,
    )
    axes = sheet.axes(0.85, 0.15, 9.3, 3.15)
    for number, site in enumerate(study.sites):
        rows = [row for _, row in study.rows("histograms", site=site)]
        dashes = "-" if site in study.sources else ((0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1, 1, 1)))[number % 3]
        share = [100 * row["share"] or float("nan") for row in rows]  # no pixel of it: no point on such an axis
        colour = SITE_COLOURS[number % len(SITE_COLOURS)]
        axes.plot([row["grey"] for row in rows], share, color=colour, ls=dashes, lw=1.9, label=short(label(site), 24))
    axes.set(xlabel="Grey (0 black, 1 white)", ylabel="Share of pixels per bin (%)", xlim=(0, 1), yscale="log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.15), ncols=per_row, borderaxespad=0, handlelength=3.2)
    return sheet.figure


def suspects(study: Study, images: Sequence[NDArray[np.uint8]]) -> Figure:
    """The images of ``study.suspects`` with their numbers, which are those of the table beside it."""
    per_row, side = 8, 1.27
    lines = -(-len(images) // per_row)
    sheet = Sheet(
        10.4,
        lines * (side + 0.3) + 0.1,
        "Images that a person should look at",
        "As stored for training. They stand out from their kin by statistics alone; none is excluded for it.",
        study.not_imagenet,
    )
    for number, (row, image) in enumerate(zip(study.suspects, images, strict=True)):
        left, top = 0.12 + number % per_row * side, number // per_row * (side + 0.3)
        sheet.text(left, sheet.head + top + 0.2, f"{number + 1}  {row['kind']}", size=8, va="bottom")
        axes = sheet.axes(left, top + 0.24, side - 0.07, side - 0.07)
        axes.imshow(image, cmap="gray", vmin=0, vmax=np.iinfo(image.dtype).max, interpolation="antialiased")
        axes.axis("off")
    return sheet.figure


def short(text: str, limit: int) -> str:
    """``text``, cut where it is longer than ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def contact_sheet(samples: Sequence[SiteSamples], finding: str, warning: str) -> Figure:
    """A few images a site: on the left with the finding, on the right without."""
    half = max([1, *(max(len(site.positives), len(site.negatives)) for site in samples)])
    margin, gutter = 1.3, 0.3
    side = min(1.15, (10.3 - margin - gutter) / (2 * half))
    sheet = Sheet(
        10.4,
        0.35 + len(samples) * (side + 0.06) + 0.1,
        f"What the network sees: {label(finding)}",
        "Images as stored for training, before normalisation; one a patient.",
        warning,
    )
    for number, (name, words) in enumerate((("positives", "present"), ("negatives", "absent"))):
        left = margin + number * (half * side + gutter)
        sheet.text(left, sheet.head + 0.22, f"{label(finding)} {words}", size=9, weight="bold", va="bottom")
        for line, site in enumerate(samples):
            top = 0.32 + line * (side + 0.06)
            if not number:
                sheet.text(margin - 0.12, sheet.head + top + side / 2, label(site.site), ha="right", va="center")
            for column, image in enumerate(getattr(site, name)):
                axes = sheet.axes(left + column * side, top, side - 0.05, side - 0.05)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
                axes.axis("off")
    return sheet.figure
