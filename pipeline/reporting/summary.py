"""What the summary says, chosen from cells: which answer a set of verdicts gives, and which rows are a reason to worry.

Cells are compared with each other and with what is ideal or mere guessing (0, 1, a half); no number is made here.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.reporting.cells import is_small
from pipeline.reporting.study import (
    BASELINES,
    DIFFERENCE,
    ELSEWHERE,
    HOME,
    MINUS_NO_PIXELS,
    SCRATCH,
    Family,
    Place,
    Row,
    Study,
    against_zero,
)

GUESSING, IDEAL_SLOPE = 0.5, 1.0
Key = tuple[Any, ...]


class Line(NamedTuple):
    """One reason to worry: the keys of the rows that it quotes (the first is of the check's own table), and whom."""

    key: Key
    family: Family | None = None
    place: Place | None = None
    other: Key = ()


class Check(NamedTuple):
    """A check of the tables: its name (a macro of ``worries.html.j2``), the section that holds it, what it found.

    ``found`` is None where the study has nothing to check. ``alarm``: it can make all else void.
    """

    name: str
    section: str
    found: tuple[Line, ...] | None
    alarm: bool = False


class Help(NamedTuple):
    """Verdicts on transfer at one place against one baseline: the answer, and the families by verdict."""

    place: Place
    against: str
    answer: str
    families: Mapping[str, list[Family]]


class Survival(NamedTuple):
    """How a network's methods do elsewhere: the answer, and the families by where their interval lies."""

    answer: str
    families: Mapping[str, list[Family]]
    guessing: list[Family]  # of whom it is not shown that they are better than guessing elsewhere


def helps(study: Study, finding: str, backbone: str) -> list[Help]:
    """Does transfer help: at home and elsewhere, against each baseline, the methods with all labels."""
    found = []
    for against in study.baselines(finding, backbone):
        for place in (HOME, ELSEWHERE):
            families: dict[str, list[Family]] = {}
            for family in study.main_families(backbone):
                row = study.verdict(family, finding, place, against)
                if family.base not in BASELINES and row is not None:
                    families.setdefault(row["verdict"] or "none", []).append(family)
            if families:
                found.append(Help(study.named(place), against, answer(families), families))
    return found


def answer(verdicts: Collection[str]) -> str:
    """One word for the verdicts on several methods: that of all; else mixed, some_help, some_harm, or some_equivalent.

    What is undecided, or could not be judged, takes nothing away from what was decided on others.
    """
    decided = set(verdicts) - {"undecided", "none"}
    if not decided:
        return "undecided" if "undecided" in verdicts else "none"
    if len(set(verdicts)) == 1:
        return decided.pop()
    if {"helps", "harms"} <= decided:
        return "mixed"
    return next(word for word in ("helps", "harms", "equivalent") if word in decided) + "_some"


def survives(study: Study, finding: str, backbone: str) -> Survival:
    """Does it survive elsewhere: where the interval of elsewhere minus home lies, and of AUROC elsewhere."""
    families: dict[str, list[Family]] = {}
    guessing = []
    for family in study.main_families(backbone):
        word = against_zero(study.metric(family, finding, DIFFERENCE, "auroc"))
        families.setdefault(word, []).append(family)
        there = study.metric(family, finding, ELSEWHERE, "auroc")
        if there is not None and there["ci_low"] is not None and there["ci_low"] <= GUESSING:
            guessing.append(family)
    judged = {word: found for word, found in families.items() if word in ("above", "below", "includes")}
    pretrained = {f for found in judged.values() for f in found if f.base not in BASELINES}
    if not judged:
        return Survival("none", families, guessing)
    if pretrained and pretrained <= set(guessing):
        return Survival("guessing", families, guessing)
    if set(judged) == {"below"}:
        return Survival("loses", families, guessing)
    return Survival("some_lose" if "below" in judged else "no_loss_shown", families, guessing)


def checks(study: Study) -> list[Check]:
    """All checks, the gravest first."""
    return [Check(name, section, found(study), alarm) for name, section, found, alarm in _CHECKS]


def _main(study: Study) -> Iterator[tuple[str, Family]]:
    for finding in study.findings:
        for backbone in study.backbones:
            for family in study.main_families(backbone):
                yield finding, family


def _leakage(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("leakage"))
    return tuple(Line(key) for key, row in rows if row["must_be_zero"] and row["count"]) if rows else None


def _overlap(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("leakage"))
    wanted = ("near_duplicates_across_patients", "overlapping_origins", "patients_in_both_roles")
    return tuple(Line(key) for key, row in rows if row["check"] in wanted and row["count"]) if rows else None


def _controls(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("controls"))
    return tuple(Line(key) for key, row in rows if row["verdict"] == "alarm") if rows else None


def _membership(study: Study) -> tuple[Line, ...] | None:
    """Attacks that tell training patients from others better than guessing, on methods over all trainings."""
    found, seen = [], False
    for backbone in study.backbones:
        for family in study.attacked(backbone):
            for key, row in study.rows("attacks", run=family.run):
                seen = seen or row["ci_low"] is not None
                if row["ci_low"] is not None and row["ci_low"] > GUESSING:
                    found.append(Line(key, family))
    return tuple(found) if seen else None


def _defects(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("flow"))
    return tuple(Line(key) for key, row in rows if row["kind"] == "defect") if rows else None


def _refused(study: Study) -> tuple[Line, ...] | None:
    """Reasons for which more files went than were left in the end."""
    rows = list(study.rows("flow"))
    last: dict[str, Row] = {}
    for _, row in rows:
        if row["kind"] == "remaining" and row["step"] >= last.get(row["site"], row)["step"]:
            last[row["site"]] = row
    return (
        tuple(
            Line(key, other=tuple(end[part] for part in ("site", "step", "kind", "reason")))
            for key, row in rows
            if row["kind"] != "remaining" and (end := last.get(row["site"]))
            and row["num_files"] is not None and end["num_files"] is not None and row["num_files"] > end["num_files"]
        )
        if rows
        else None
    )  # fmt: skip


def _undecided(study: Study) -> tuple[Line, ...] | None:
    """Verdicts whose interval reaches beyond the margin on both sides: a help and a harm that matter are possible."""
    if not any(study.rows("verdicts")):
        return None
    found = []
    for finding, family in _main(study):
        for place in (HOME, ELSEWHERE):
            row = study.verdict(family, finding, place, SCRATCH)
            if row is not None and row["verdict"] == "undecided" and row["ci_low"] is not None:
                wide = row["ci_low"] < -row["margin"] and row["ci_high"] > row["margin"]
                if wide:
                    key = (family.run, finding, place.split, place.group, SCRATCH)
                    found.append(Line(key, family, study.named(place)))
    return tuple(found)


def _baselines(study: Study) -> tuple[Line, ...] | None:
    """Where the verdict is not the same against another baseline."""
    if not any(row["against"] != SCRATCH for _, row in study.rows("verdicts") if row["against"] in BASELINES):
        return None
    found = []
    for finding, family in _main(study):
        for place in (HOME, ELSEWHERE):
            plain = study.verdict(family, finding, place, SCRATCH)
            for against in BASELINES:
                row = study.verdict(family, finding, place, against)
                if row and plain and row["verdict"] != plain["verdict"]:
                    where = (family.run, finding, place.split, place.group)
                    found.append(Line((*where, SCRATCH), family, study.named(place), (*where, against)))
    return tuple(found)


def _protocol(study: Study) -> tuple[Line, ...] | None:
    return tuple(Line(key) for key, row in study.rows("protocol") if row["hypothesis"] is None)


def _suspects(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("outlier_counts"))
    return tuple(Line(key) for key, row in rows if row["num_outliers"]) if rows else None


def _shortcuts(study: Study) -> tuple[Line, ...] | None:
    rows = list(study.rows("probes", kind="shortcut"))
    return (
        tuple(Line(key) for key, row in rows if row["ci_low"] is not None and row["ci_low"] > GUESSING)
        if rows
        else None
    )


def _headers(study: Study) -> tuple[Line, ...] | None:
    """Pretrained methods of which it is not shown, at home, that they are better than what is told without pixels."""
    if not study.without_pixels:
        return None
    found = []
    for finding, family in _main(study):
        key = (family.run, finding, HOME.split, HOME.group, MINUS_NO_PIXELS)
        row = study.row("metrics", key)
        if row is not None and family.base not in BASELINES and against_zero(row) in ("below", "includes"):
            found.append(Line(key, family, study.named(HOME)))
    return tuple(found)


def _shift(study: Study) -> tuple[Line, ...] | None:
    """Hospitals where no shift was rejected, or where nothing explains what differs; one row a hospital and word."""
    rows = list(study.rows("diagnoses"))
    found: dict[tuple[str, str, str], Line] = {}
    for key, row in rows:
        if row["hypothesis"] in ("no_shift", "label_and_covariate_shift") and row["verdict"] != "compatible":
            found.setdefault((row["site"], row["hypothesis"], row["verdict"]), Line(key))
    return tuple(found[name] for name in sorted(found)) if rows else None


def _stress(study: Study) -> tuple[Line, ...] | None:
    """Kinds of acquisition shift that cost AUROC at the highest severity; one row a finding, kind and method."""
    found = []
    for finding, backbone in study.subjects("stress"):
        for kind, severity in study.strongest(finding, backbone).items():
            for family in study.families_in("stress", backbone):
                row = study.row("stress", (family.run, finding, kind, severity))
                if row is not None and row["difference_high"] is not None and row["difference_high"] < 0:
                    found.append(Line((family.run, finding, kind, severity), family))
    return tuple(found) if any(study.rows("stress")) else None


def _calibration(study: Study) -> tuple[Line, ...] | None:
    """Slopes elsewhere whose interval misses one, and intercepts whose interval misses zero."""
    found, seen = [], False
    for finding, family in _main(study):
        for metric, ideal in (("calibration_slope", IDEAL_SLOPE), ("calibration_intercept", 0.0)):
            key = (family.run, finding, ELSEWHERE.split, ELSEWHERE.group, metric)
            row = study.row("metrics", key)
            if row is not None and row["ci_low"] is not None and row["ci_high"] is not None:
                seen = True
                if not row["ci_low"] <= ideal <= row["ci_high"]:
                    found.append(Line(key, family, study.named(ELSEWHERE)))
    return tuple(found) if seen else None


def _threshold(study: Study) -> tuple[Line, ...] | None:
    """Specificities elsewhere that lie below what the threshold was chosen for, the whole interval."""
    found, seen = [], False
    wanted = {row["finding"]: (key, row["wanted_specificity"]) for key, row in study.rows("thresholds")}
    for finding, family in _main(study):
        key = (family.run, finding, ELSEWHERE.split, ELSEWHERE.group, "specificity")
        row = study.row("metrics", key)
        if row is not None and row["ci_high"] is not None and finding in wanted:
            seen = True
            of, level = wanted[finding]
            if row["ci_high"] < level:
                found.append(Line(key, family, study.named(ELSEWHERE), of))
    return tuple(found) if seen else None


def _subgroups(study: Study) -> tuple[Line, ...] | None:
    """Worst groups whose AUROC lies below that of all, interval below interval."""
    found, seen = [], False
    for finding, family in _main(study):
        for place in study.groups(finding):
            if place.group.startswith("worst_"):
                pooled = HOME if place.split == HOME.split else ELSEWHERE
                worst, whole = (study.metric(family, finding, at, "auroc") for at in (place, pooled))
                few = worst is not None and is_small(worst["num_patients"], study.min_cell)
                if worst and whole and not few and worst["ci_high"] is not None and whole["ci_low"] is not None:
                    seen = True
                    if worst["ci_high"] < whole["ci_low"]:
                        key = (family.run, finding, place.split, place.group, "auroc")
                        found.append(Line(key, family, place, (*key[:3], pooled.group, "auroc")))
    return tuple(found) if seen else None


def _remedies(study: Study) -> tuple[Line, ...] | None:
    """Remedies whose verdict, elsewhere and over all hospitals, is harm."""
    adapted = [family for backbone in study.backbones for own in study.adapted(backbone).values() for family in own]
    runs = {family.run: family for family in adapted if study.remedy(family)}
    if not runs:
        return None
    return tuple(
        Line(key, runs[row["run"]], study.named(ELSEWHERE))
        for key, row in study.rows("verdicts", verdict="harms", split=ELSEWHERE.split, group=ELSEWHERE.group)
        if row["run"] in runs
    )


_CHECKS: tuple[tuple[str, str, Callable[[Study], tuple[Line, ...] | None], bool], ...] = (
    ("leakage", "leakage", _leakage, True),
    ("controls", "controls", _controls, True),
    ("defects", "funnel", _defects, True),
    ("refused", "funnel", _refused, False),
    ("undecided", "verdict", _undecided, False),
    ("baselines", "verdict", _baselines, False),
    ("protocol", "verdict", _protocol, False),
    ("overlap", "leakage", _overlap, False),
    ("suspects", "quality", _suspects, False),
    ("headers", "pixels", _headers, False),
    ("shortcuts", "diagnosis", _shortcuts, False),
    ("shift", "diagnosis", _shift, False),
    ("stress", "stress", _stress, False),
    ("calibration", "calibration", _calibration, False),
    ("threshold", "calibration", _threshold, False),
    ("subgroups", "subgroups", _subgroups, False),
    ("remedies", "remedies", _remedies, False),
    ("membership", "membership", _membership, False),
)
