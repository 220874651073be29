"""Figure of model privacy: how well attacks tell a model's training patients from others."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.figures import INK, MUTED, Sheet, looks, short
from pipeline.reporting.study import Study, attack_label

_ROW, _WIDTH = 0.3, 7.2  # inches: a method, all panels


def membership(study: Study, backbone: str) -> Figure:
    """AUROC of each attack on each method: a panel an attack, a line a method, the line at a half being a guess."""
    families, attacks, look = study.attacked(backbone), study.attacks(backbone), looks(study)
    height = len(families) * _ROW
    sheet = Sheet(
        10.4,
        height + 0.95,
        f"Who was it trained on? {backbone}",
        "AUROC of attacks that tell training patients from patients never seen at home, with intervals.",
        study.not_imagenet,
    )
    pitch = _WIDTH / max(len(attacks), 1)
    first = None
    for number, name in enumerate(attacks):
        axes = sheet.axes(2.75 + number * pitch, 0.35, pitch - 0.3, height, sharex=first, sharey=first)
        first = first or axes
        axes.set_title(short(attack_label(name), 26), loc="left", fontsize=8.5, fontweight="bold")
        axes.axvline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        for place, family in enumerate(families):
            row = study.row("attacks", (family.run, name))
            if row is None or row["auroc"] is None:
                continue
            colour, marker = look[family.base]
            if row["ci_low"] is not None and row["ci_high"] is not None:
                axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, lw=1.8, zorder=2)
            axes.plot([row["auroc"]], [place], marker=marker, ms=6, color=colour, mec="white", mew=0.8, zorder=3)
        axes.set(yticks=[], ylim=(len(families) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.tick_params(axis="x", length=3, labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.set_xlabel("AUROC", fontsize=8, color=MUTED)
    if first is not None:
        low, high = first.get_xlim()
        first.set_xlim(min(low, 0.45), max(high, 0.55))
    for place, family in enumerate(families):
        middle = sheet.head + 0.35 + (place + 0.5) * _ROW
        sheet.text(0.12, middle, short(family.label, 36), va="center", color=INK)
    sheet.text(2.75, sheet.height - 0.12, "Dashed: a guess. To the right of it: told apart.", size=8, color=MUTED)
    return sheet.figure
