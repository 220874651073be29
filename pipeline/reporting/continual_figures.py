"""Figure of continual learning: AUROC on each hospital while one after another is learnt."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.reporting.figures import ELSEWHERE_BAND, INK, MUTED, Sheet, short
from pipeline.reporting.study import Row, Study, label
from pipeline.tables.continual import STRATEGIES

_LOOKS = {
    "naive": ("#D55E00", "D", "-"),
    "replay": ("#0072B2", "s", (0, (5, 1.5))),
    "joint": ("#009E73", "^", (0, (1.5, 1))),
}
_WORDS = {
    "naive": "naive: the newcomer alone",
    "replay": "replay: with a few earlier patients",
    "joint": "joint: all patients again",
}
_PER_ROW, _WIDTH, _HEIGHT, _LINE, _BETWEEN = 3, 9.75, 1.9, 2.75, 0.5  # panels; inches


def sequence(study: Study, finding: str, backbone: str) -> Figure:
    """A panel a hospital in the order in which they are learnt, a line a strategy."""
    sites = study.learnt(backbone)
    lines = -(-len(sites) // _PER_ROW)
    sheet = Sheet(
        10.4,
        lines * _LINE + 0.55,
        f"One hospital after another: {label(finding)}, {backbone}",
        "AUROC on each hospital's test patients after each step, with intervals. Shaded: before it was learnt.",
        study.not_imagenet,
    )
    pitch = _WIDTH / _PER_ROW
    drawn: list[Axes] = []
    for number, site in enumerate(sites):
        left, top = 0.65 + number % _PER_ROW * pitch, 0.4 + number // _PER_ROW * _LINE
        first = drawn[0] if drawn else None
        axes = sheet.axes(left, top, pitch - _BETWEEN, _HEIGHT, sharex=first, sharey=first)
        drawn.append(axes)
        side = "Home" if site in study.sources else "Elsewhere"
        axes.set_title(f"{side}: {short(label(site), 20)}", loc="left", fontsize=9, fontweight="bold")
        _curves(study, finding, backbone, site, axes)
        axes.axvspan(-0.5, number - 0.5, color=ELSEWHERE_BAND, lw=0, zorder=0)
        axes.set(xlim=(-0.4, len(sites) - 0.6), xticks=range(len(sites)))
        axes.set_xticklabels([("" if not n else "+ ") + short(label(name), 10) for n, name in enumerate(sites)])
        axes.grid(axis="y")
        axes.tick_params(labelsize=8, length=3)
        if number % _PER_ROW == 0:
            axes.set_ylabel("AUROC", fontsize=8)
    for axes in drawn:
        if axes.get_ylim()[0] <= 0.5:
            axes.axhline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    legend = sheet.axes(0.6, lines * _LINE + 0.2, 9.6, 0.2)
    legend.axis("off")
    for strategy in STRATEGIES:
        if study.row("continual_scores", (f"{backbone}-{strategy}", finding, 0, sites[0])) is not None:
            colour, marker, dashes = _LOOKS[strategy]
            legend.plot([], [], color=colour, marker=marker, ls=dashes, ms=4.5, lw=1.4, label=_WORDS[strategy])
    legend.legend(loc="upper left", ncols=3, borderpad=0, borderaxespad=0, fontsize=8, handlelength=3.2)
    return sheet.figure


def _curves(study: Study, finding: str, backbone: str, site: str, axes: Axes) -> None:
    defined = False
    for turn, strategy in enumerate(STRATEGIES):
        colour, marker, dashes = _LOOKS[strategy]
        rows = study.rows("continual_scores", run=f"{backbone}-{strategy}", finding=finding, site=site)
        # Side by side, so that no interval hides another.
        points: list[tuple[float, Row]] = [(row["step"] + 0.06 * (turn - 1), row) for _, row in rows]
        points = sorted(((x, row) for x, row in points if row["value"] is not None), key=lambda point: point[0])
        defined = defined or bool(points)
        for x, row in points:
            if row["ci_low"] is not None and row["ci_high"] is not None:
                axes.plot([x, x], [row["ci_low"], row["ci_high"]], color=colour, lw=1.0, alpha=0.6, zorder=2)
        axes.plot(
            [x for x, _ in points], [row["value"] for _, row in points], color=colour, marker=marker, ls=dashes,
            ms=5, lw=1.5, mec="white", mew=0.6, zorder=3,
        )  # fmt: skip
    if not defined:
        axes.text(0.5, 0.5, "not defined", color=INK, ha="center", va="center", transform=axes.transAxes, size=9)
