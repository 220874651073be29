"""What a report is about: the tables of one study, with look-ups, orders and words. Nothing is computed."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from pipeline.tables.adaptation import Remedies
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.choice import RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.continual import STRATEGIES, ContinualMeasures, ContinualScores, ContinualSteps
from pipeline.tables.contract import Table, make_table
from pipeline.tables.controls import Controls
from pipeline.tables.diagnosis import Abstention, Diagnoses, Probes
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.files import Deidentification, Notes
from pipeline.tables.gallery import CALLS, CallCounts, Gallery, MapMeans
from pipeline.tables.images import Flow, Leakage
from pipeline.tables.labels import LabelIssues
from pipeline.tables.matrix import MatrixScores
from pipeline.tables.membership import ATTACKS, MembershipAttacks, MembershipExposures
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.quality import OUTLIER_KINDS, Balance, GreyHistograms, OutlierCounts, Outliers, TableOne
from pipeline.tables.stress import StressCurves
from pipeline.tables.training import Curves, Runs

SCRATCH = "scratch"
CONVERGED = "scratch_converged"
METHODS = {
    SCRATCH: "From scratch",
    CONVERGED: "From scratch, to convergence",
    "prototypes": "Prototypes (few-shot)",
    "linear_probe": "Linear probe",
    "vgg_head": "VGG-style head",
    "full_finetune": "Full fine-tuning",
    "lp_ft": "Linear probe, then fine-tuning",
    "gradual_unfreeze": "Gradual unfreezing",
    "layer_decay": "Layer-wise learning rates",
    "l2_sp": "L2-SP",
}
BASELINES = (SCRATCH, CONVERGED)
SPLITS = {
    "train": "Training",
    "id_val": "Validation at home",
    "id_test": "Test at home",
    "target_adapt": "Unlabelled, elsewhere",
    "ood_test": "Test elsewhere",
}
METRICS = {
    "auroc": "AUROC",
    "auroc_minus_scratch": "AUROC minus scratch",
    "auroc_minus_no_pixels": "AUROC minus no pixels",
    "auroc_minus_plain": "AUROC minus plain",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "prevalence": "Prevalence",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "ece": "ECE",
    "brier": "Brier score",
    "brier_calibration": "Brier: calibration",
    "brier_refinement": "Brier: refinement",
    "log_loss": "Log loss",
    "ppv": "PPV",
    "npv": "NPV",
    "net_benefit": "Net benefit",
    "net_benefit_all": "Net benefit, all called positive",
}
STEPS = {
    "inventory": "Files found",
    "ingest": "Read, headers sound",
    "preprocess": "Pixels usable",
    "split": "Used in the study",
}
VARIABLES = {
    "sex": "Sex",
    "age_years": "Age in years",
    "modality": "Modality",
    "device": "Manufacturer, model",
    "body_part": "Body part",
    "view_position": "View",
    "photometric_interpretation": "Photometric interpretation",
    "pixel_spacing_mm": "Pixel spacing in mm",
    "imager_pixel_spacing_mm": "Imager pixel spacing in mm",
}
REMEDIES = {
    "histogram_matching": "Histogram matching",
    "adabn": "AdaBN",
    "coral": "CORAL",
    "dann": "DANN",
    "group_dro": "GroupDRO",
    "label_shift": "Label-shift correction",
    "prevalence": "Prevalence recalibration",
    "temperature": "Temperature scaling",
}
_WORDS = {
    "h_score": "H-score",
    "log_me": "LogME",
    "leep": "LEEP",
    "mahalanobis": "Mahalanobis distance",
    "embedding_mmd": "MMD of embeddings",
    "matched_embedding_mmd": "MMD of embeddings, prevalence matched",
    "matched_score_mmd": "MMD of scores, prevalence matched",
    "label_given_score": "label given the score",
    "slope_given_score": "label given the score, but for a constant",
    "label_given_propensity": "label given score and features",
    "slope_given_propensity": "label given score and features, but for a constant",
    "same_method_twice": "One method against itself",
    "window": "contrast window",
    "corners": "the corners",
    "border": "the border",
    "padding": "the padding",
    "mistakes": "all mistakes",
    "correct": "all correct calls",
    "mistakes_minus_correct": "mistakes minus correct",
    "file": "how the file came about",
    "acquisition": "acquisition fields",
}
_ATTACK_LABELS = {
    "loss": "Loss",
    "entropy": "Entropy",
    "modified_entropy": "Modified entropy",
    "calibrated": "Calibrated",
}
_LAST_LEVELS = ("not annotated", "contradictory", "missing")
MAX_SUSPECTS = 24
CALIBRATION_METRICS = (
    "calibration_slope", "calibration_intercept", "ece", "brier", "brier_calibration", "brier_refinement", "log_loss",
)  # fmt: skip
SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity")
NO_PIXELS = "no_pixels"
MINUS_NO_PIXELS, MINUS_PLAIN = "auroc_minus_no_pixels", "auroc_minus_plain"
GAP = "target_minus_source"

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
    "diagnoses": Diagnoses,
    "probes": Probes,
    "abstention": Abstention,
    "controls": Controls,
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

_TRAINING = re.compile(r"-seed\d")  # in the name of a single run

Row = Mapping[str, Any]
MetricKey = tuple[str, str, str, str, str]  # run, finding, split, group, metric

_SPELLING = {"dicom": "DICOM", "sop": "SOP", "uid": "UID", "voi": "VOI", "id": "ID", "auroc": "AUROC"}
_SPELLING |= {"ppv": "PPV", "npv": "NPV"}
_NOT_IMAGENET = {
    "random": "random initialisation, not ImageNet",
    "file": "weights from another file, not ImageNet",
    "": "initialisation not recorded, perhaps not ImageNet",
}


def label(name: str) -> str:
    """A name from a table as words: ``not_dicom`` reads "not DICOM"; what is known has its own words."""
    known = METHODS.get(name) or SPLITS.get(name) or METRICS.get(name) or VARIABLES.get(name) or _WORDS.get(name)
    # Names of metrics hold no dot: net_benefit_at_2_5_percent.
    plain = re.sub(r"(\d)_(\d+_percent)$", r"\1.\2", name)
    return known or " ".join(_SPELLING.get(word, word) for word in plain.replace("_", " ").split(" "))


def remedy_label(name: str) -> str:
    """A remedy in words; ``label`` would take some for a metric."""
    return REMEDIES.get(name) or label(name)


def attack_label(name: str) -> str:
    """An attack on a model's privacy in words."""
    return _ATTACK_LABELS.get(name) or label(name)


def slug(*parts: str) -> str:
    """A file's name out of names; whatever is no letter or digit becomes "_"."""
    return "-".join(re.sub(r"[^a-z0-9]+", "_", part.lower()) for part in parts)


class Family(NamedTuple):
    """A backbone and method over all its seeds, as evaluation pools them."""

    run: str
    backbone: str
    method: str

    @property
    def base(self) -> str:
        """The method without what departs from the plain case (a part of the labels, an adaptation)."""
        return self.method.partition("-")[0]

    @property
    def variant(self) -> str:
        """What departs from the plain case, or ""."""
        return self.method.partition("-")[2]

    @property
    def label(self) -> str:
        """The method in words."""
        return ", ".join(filter(None, (label(self.base), self.variant)))


class Place(NamedTuple):
    """Where a model was tested: the split and group of the metrics table, and the words for it."""

    split: str
    group: str
    where: str  # "Home" or "Elsewhere"
    site: str  # "" for all hospitals of a side together

    @property
    def of(self) -> str:
        """The domain or subgroup whose level, or worst, it is (``sex+age_band``); "" for hospitals."""
        if self.group.startswith("worst_"):
            return self.group.removeprefix("worst_").removeprefix("site")
        return "+".join(name for name, _ in _levels(self.group) if name != "site")

    @property
    def title(self) -> str:
        """The place in words."""
        if self.site:
            return f"{self.where}: {label(self.site)}"
        if self.of:
            return f"{self.where}: {_level(self.group)}"
        return {"worst_site": "Elsewhere, worst hospital", GAP: "Elsewhere minus home"}.get(
            self.group, f"{self.where}, all hospitals"
        )


def _levels(group: str) -> list[tuple[str, str]]:
    """Columns and levels of ``sex=F+age_band=80+``; none where it is no such name."""
    parts = [part.partition("=") for part in re.split(r"\+(?=\w+=)", group)]
    return [(name, level) for name, found, level in parts if found]


def _level(group: str) -> str:
    if group.startswith("worst_"):
        return group.replace("_", " ").replace("+", ", ")
    return ", ".join(f"{name.replace('_', ' ')} {level}" for name, level in _levels(group))


class Noted(NamedTuple):
    """A note of a table: the first key that has it, and the rows that it concerns."""

    key: tuple[Any, ...]
    rows: tuple[Row, ...]


class Remark(NamedTuple):
    """A note in the table of verdicts: the first key that has it, and the families and places it concerns."""

    key: tuple[Any, ...]
    families: tuple[Family, ...]
    places: tuple[Place, ...]


class Text(NamedTuple):
    """A text in the metrics table: the first key that has it, and the places and metrics it concerns."""

    key: MetricKey
    places: tuple[str, ...]
    metrics: tuple[str, ...]


HOME = Place("id_test", "source", "Home", "")
ELSEWHERE = Place("ood_test", "target", "Elsewhere", "")
WORST = Place("ood_test", "worst_site", "Elsewhere", "")
DIFFERENCE = Place("ood_test", GAP, "Elsewhere", "")


# The page's sections in order: each is the template of that name, and its words in the table of contents.
_PARTS = {
    "summary": "Summary",
    "funnel": "Patient flow",
    "composition": "Who is in it",
    "quality": "What the images look like",
    "samples": "As the network sees them",
    "leakage": "Splits and leakage",
    "training": "Training",
    "verdict": "Does transfer help",
    "pixels": "What the images add",
    "efficiency": "Labels and cost",
    "choice": "Choosing a method",
    "hospitals": "Per hospital",
    "mismatch": "Data mismatch",
    "diagnosis": "Diagnosis of shift",
    "matrix": "Trained here, tested there",
    "stress": "Acquisition shift",
    "remedies": "Remedies",
    "controls": "Controls",
    "continual": "One hospital after another",
    "calibration": "Calibration",
    "subgroups": "Subgroups",
    "gallery": "Failure gallery",
    "membership": "Model privacy",
    "provenance": "Provenance",
    "checklist": "Reporting guidelines",
    "reading": "How to read this",
}


# Sections that every study has, and the tables without all of which they would have nothing to show.
_NEEDED: dict[str, set[str]] = {
    "funnel": {"flow"},
    "composition": {"table_one", "balance"},
    "quality": {"histograms", "outliers", "outlier_counts"},
    "samples": {"metrics"},
    "leakage": {"leakage"},
    "training": {"runs", "curves", "overfitting", "thresholds"},
    "verdict": {"verdicts"},
    "efficiency": {"efficiency", "savings"},
    "hospitals": {"metrics"},
    "calibration": {"calibration", "metrics"},
}


@dataclass(frozen=True)
class Study:
    """All that the page shows.

    Args:
        title: the page's title.
        notice: a sentence that must not be overlooked, or "".
        sources: home sites, in the order shown.
        targets: sites elsewhere, in the order shown.
        min_cell: counts from 1 to one below this are shown as "below".
        frames: the tables, under the names of CONTRACTS; one that is not there is empty.
        params_yaml: all parameters, as YAML.
        versions: per package, its version.
        data_hashes: per table read, its SHA-256.
        absent: of a partial report, the tables that every study has and this one lacks.
        gaps: of a partial report, each stage without a usable result, and why.
    """

    title: str
    notice: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    min_cell: int
    frames: Mapping[str, pd.DataFrame]
    params_yaml: str
    versions: Mapping[str, str]
    data_hashes: Mapping[str, str]
    absent: frozenset[str] = frozenset()
    gaps: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _indices(self) -> dict[str, dict[tuple[Any, ...], Row]]:
        indices: dict[str, dict[tuple[Any, ...], Row]] = {}
        for name, contract in CONTRACTS.items():
            frame = make_table(contract, self.frames.get(name, []))
            plain = frame.astype(object).where(frame.notna(), None)
            indices[name] = {tuple(row[part] for part in contract.key): row for row in plain.to_dict("records")}
        return indices

    def row(self, table: str, key: tuple[Any, ...]) -> Row | None:
        """The row under ``key``; None where there is none. Null cells are None."""
        return self._indices[table].get(tuple(key))

    def rows(self, table: str, **wanted: Any) -> Iterator[tuple[Any, Row]]:
        """Keys and rows whose columns have the wanted values, in the order of the key."""
        for key, row in self._indices[table].items():
            if all(row[column] == value for column, value in wanted.items()):
                yield key, row

    def metric(self, family: Family, finding: str, place: Place, metric: str) -> Row | None:
        """One row of the metrics table."""
        return self.row("metrics", (family.run, finding, place.split, place.group, metric))

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, home first."""
        return self.sources + self.targets

    @cached_property
    def treatments(self) -> list[tuple[str, str]]:
        """The actions and treatments that headers' elements met, each pair once."""
        return sorted({(row["action"], row["treatment"]) for _, row in self.rows("deidentification")})

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """The splits that each site has, home first: the columns of Table 1."""
        totals = {(row["site"], row["split"]) for _, row in self.rows("table_one", variable="total")}
        found = {site: [split for split in SPLITS if (site, split) in totals] for site in self.sites}
        return {site: splits for site, splits in found.items() if splits}

    @cached_property
    def variables(self) -> dict[str, tuple[bool, list[str]]]:
        """Table 1's variables in order: whether a level is the patient's, and the levels, what is unknown last."""
        rows = [row for _, row in self.rows("table_one") if row["variable"] != "total"]
        names = {row["variable"]: row["of_patients"] for row in rows}
        ordered = [name for name in VARIABLES if name in names] + sorted(set(names) - set(VARIABLES))
        levels = {name: {row["level"] for row in rows if row["variable"] == name} for name in ordered}
        return {
            name: (names[name], sorted(levels[name], key=lambda level: (level in _LAST_LEVELS, level)))
            for name in ordered
        }

    @cached_property
    def suspects(self) -> list[Row]:
        """The outliers that the page shows, in the order of their numbers: of each kind and site the clearest."""
        turns: dict[tuple[str, str], int] = {}
        numbered = []
        clearest = sorted(self.rows("outliers"), key=lambda item: -abs(item[1]["score"] - item[1]["threshold"]))
        for _, row in clearest:
            group = (row["kind"], row["site"])
            turns[group] = turns.get(group, 0) + 1
            numbered.append((turns[group], OUTLIER_KINDS.index(row["kind"]), row["site"], row))
        chosen = sorted(numbered, key=lambda entry: entry[:3])[:MAX_SUSPECTS]
        return [row for *_, row in sorted(chosen, key=lambda entry: (*entry[1:3], entry[0]))]

    @cached_property
    def findings(self) -> list[str]:
        """The findings that were evaluated."""
        return sorted({row["finding"] for _, row in self.rows("metrics")})

    @cached_property
    def _pooled(self) -> list[Family]:
        """What was evaluated over all seeds: each run but single trainings, which have AUROC alone."""
        single = set(self._indices["runs"])
        names = {run for (run, *_), row in self.rows("metrics") if (run,) not in single or row["metric"] != "auroc"}
        return in_order({name for name in names if not _TRAINING.search(name)})

    @cached_property
    def families(self) -> list[Family]:
        """Networks and methods over all seeds, without what no image was shown to and without remedies."""
        return [f for f in self._pooled if f.backbone != NO_PIXELS and f not in self._remedy_of]

    @cached_property
    def without_pixels(self) -> list[Family]:
        """The baselines that see no image."""
        return [family for family in self._pooled if family.backbone == NO_PIXELS]

    @cached_property
    def _remedy_of(self) -> dict[Family, str]:
        """The adapted families, and the remedy of each."""
        runs = {run.partition("-adapt_")[2] for run, *_ in self._indices["metrics"]}
        known = {row["remedy"] for _, row in self.rows("remedies")} | runs - {""}
        parts = {family: family.variant.replace("adapt_", "").split("-") for family in self._pooled}
        return {family: name for family, own in parts.items() for name in own if name in known}

    def adapted(self, backbone: str) -> dict[str, list[Family]]:
        """By method, a backbone's adapted families; each method's own, unadapted, first."""
        found: dict[str, list[Family]] = {}
        for family in self._remedy_of:
            if family.backbone == backbone:
                plain = self.family(f"{backbone}-{family.base}")
                found.setdefault(family.base, [plain] if plain in self.families else []).append(family)
        return found

    def remedy(self, family: Family) -> str:
        """The remedy of an adapted family in words, "" for others."""
        return remedy_label(self._remedy_of[family]) if family in self._remedy_of else ""

    @cached_property
    def backbones(self) -> list[str]:
        """The backbones that were evaluated; where evaluation is missing, those that were trained."""
        evaluated = dict.fromkeys(family.backbone for family in self.families)
        trained = dict.fromkeys(self.run_family(run)[0] for (run,), _ in self.rows("runs"))
        return list(evaluated or (trained if "metrics" in self.absent else ()))

    def families_of(self, backbone: str) -> list[Family]:
        """A backbone's families: the scratch twin, the known methods, then others by name."""
        return [family for family in self.families if family.backbone == backbone]

    def main_families(self, backbone: str) -> list[Family]:
        """Those that had all labels; where there are none, all."""
        budgets = {row["run"]: row["budget"] for _, row in self.rows("efficiency", backbone=backbone)}
        families = self.families_of(backbone)
        return [family for family in families if budgets.get(family.run, "all") == "all"] or families

    def verdict(self, family: Family, finding: str, place: Place, against: str) -> Row | None:
        """One row of the table of verdicts."""
        return self.row("verdicts", (family.run, finding, place.split, place.group, against))

    def judged(self, finding: str, backbone: str, against: str) -> list[Family]:
        """A backbone's families that were compared with a baseline; also where there is no verdict."""
        runs = {row["run"] for _, row in self.rows("verdicts", finding=finding, against=against)}
        return [family for family in self.families_of(backbone) if family.run in runs]

    def baselines(self, finding: str, backbone: str) -> list[str]:
        """The methods from random weights that a backbone's families were compared with."""
        return [against for against in BASELINES if self.judged(finding, backbone, against)]

    def verdict_places(self, finding: str, table: str = "verdicts") -> list[Place]:
        """Home first; a side's only hospital is the side."""
        seen = {(row["split"], row["group"]) for _, row in self.rows(table, finding=finding)}
        ordered: list[Place] = []
        for pooled, sites in ((HOME, self.sources), (ELSEWHERE, self.targets)):
            own = [Place(pooled.split, f"site={site}", pooled.where, site) for site in sites]
            ordered += [self.named(pooled)] if len(own) == 1 else [pooled, *own]
        return [place for place in ordered if (place.split, place.group) in seen]

    def named(self, pooled: Place) -> Place:
        """All hospitals of a side, under the name of the one where it has one only."""
        sites = self.sources if pooled.where == HOME.where else self.targets
        return pooled._replace(site=sites[0]) if len(sites) == 1 else pooled

    def remarks(self, finding: str, backbone: str, against: str) -> list[Remark]:
        """The different notes on a backbone's verdicts, and what they concern."""
        found: dict[str, tuple[tuple[Any, ...], dict[Family, None], dict[Place, None]]] = {}
        for place in self.verdict_places(finding):
            for family in self.judged(finding, backbone, against):
                row = self.verdict(family, finding, place, against)
                if row is not None and row["note"]:
                    key = (family.run, finding, place.split, place.group, against)
                    _, families, places = found.setdefault(row["note"], (key, {}, {}))
                    families[family] = places[place] = None
        return [Remark(key, tuple(families), tuple(places)) for key, families, places in found.values()]

    @cached_property
    def judged_at(self) -> list[tuple[float, float]]:
        """The margins and levels of the verdicts; one pair where one section of params made them all."""
        return sorted({(row["margin"], row["alpha"]) for _, row in self.rows("verdicts")})

    def points(self, finding: str, backbone: str, place: Place) -> dict[Family, list[Row]]:
        """Points by label budget, few first, for each method; scratch first. A curve's family is that of all labels."""
        found: dict[str, list[Row]] = {}
        wanted = {"finding": finding, "backbone": backbone, "split": place.split, "group": place.group}
        for _, row in self.rows("efficiency", **wanted):
            found.setdefault(row["curve"], []).append(row)
        return {
            family: sorted(found[family.run], key=lambda row: (row["labelled_patients"] or 0.0, row["run"]))
            for family in in_order(found)
        }

    def savings(self, finding: str, backbone: str) -> list[tuple[tuple[Any, ...], Row, Place]]:
        """What is read off a backbone's curves: key, row and place, in the order of places and methods."""
        found = dict(self.rows("savings", finding=finding))
        return [
            (key, row, place)
            for place in (HOME, ELSEWHERE)
            for family in self.points(finding, backbone, place)
            for key, row in found.items()
            if (row["curve"], row["split"], row["group"]) == (family.run, place.split, place.group)
        ]

    @staticmethod
    def family(run: str) -> Family:
        """The family of that name."""
        return Family(run, *run.partition("-")[::2])

    def label_budgets(self, finding: str, backbone: str) -> int:
        """How many label budgets a backbone was trained with."""
        rows = self.rows("efficiency", finding=finding, backbone=backbone)
        return len({(row["budget"], row["label_fraction"], row["shots"]) for _, row in rows})

    def has_costs(self, finding: str, backbone: str) -> bool:
        """Whether anything is known of what training cost."""
        return any(row["train_tflop"] for _, row in self.rows("efficiency", finding=finding, backbone=backbone))

    def places(self, finding: str) -> list[Place]:
        """Home first; "all hospitals" only where a side has not exactly one."""
        seen = {(split, group) for (_, _, split, group, _), _ in self.rows("metrics", finding=finding)}
        ordered: list[Place] = []
        for pooled, sites in ((HOME, self.sources), (ELSEWHERE, self.targets)):
            own = [Place(pooled.split, f"site={site}", pooled.where, site) for site in sites]
            own = [place for place in own if (place.split, place.group) in seen]
            ordered += own if len(own) == 1 else [pooled, *own]
        return [place for place in ordered if (place.split, place.group) in seen]

    def table_places(self, finding: str) -> list[Place]:
        """``places``, then the worst hospital elsewhere and the gap."""
        seen = {(split, group) for (_, _, split, group, _), _ in self.rows("metrics", finding=finding)}
        return self.places(finding) + [p for p in (WORST, DIFFERENCE) if (p.split, p.group) in seen]

    @cached_property
    def all_places(self) -> list[Place]:
        """The places of all findings, each once."""
        return list(dict.fromkeys(place for finding in self.findings for place in self.table_places(finding)))

    def metrics_of(self, finding: str, kind: str) -> list[str]:
        """The columns of a table of metrics: "main", "calibration" or "use"; unknown metrics stand last in "main"."""
        pooled = {family.run for family in self.families}
        seen = {m for (run, _, _, _, m), _ in self.rows("metrics", finding=finding) if run in pooled}
        # DeLong's interval is a cross-check of the bootstrap's, in the table for whoever wants it.
        seen -= {MINUS_NO_PIXELS, MINUS_PLAIN, "auroc_delong"}
        ordered = [m for m in METRICS if m in seen] + sorted(seen - set(METRICS))
        return [metric for metric in ordered if _kind(metric) == kind]

    def groups(self, finding: str) -> list[Place]:
        """The levels of domains and subgroups, home first, the worst of a column behind its levels."""
        groups = {(split, group) for (_, _, split, group, _), _ in self.rows("metrics", finding=finding)}
        sides = ((HOME.split, HOME.where), (ELSEWHERE.split, ELSEWHERE.where))
        found = [Place(split, group, where, "") for split, where in sides for own, group in groups if own == split]
        order = [side for side, _ in sides]
        return sorted(
            (place for place in found if place.of),
            key=lambda place: (order.index(place.split), place.of, place.group.startswith("worst_"), place.group),
        )

    def notes(self, table: str, column: str = "note", **wanted: Any) -> list[Noted]:
        """The different texts in ``column`` of a table's rows with the wanted values."""
        found: dict[str, tuple[Any, list[Row]]] = {}
        for key, row in self.rows(table, **wanted):
            if row[column]:
                found.setdefault(row[column], (key, []))[1].append(row)
        return [Noted(key, tuple(rows)) for key, rows in found.values()]

    def distinct(self, table: str, column: str, **wanted: Any) -> list[Any]:
        """The different values of a column in rows with the wanted values, in the order of the key."""
        return list(dict.fromkeys(row[column] for _, row in self.rows(table, **wanted)))

    def subjects(self, table: str) -> list[tuple[str, str]]:
        """The findings and backbones that a table is about."""
        found = {
            (row["finding"], row.get("backbone") or self.family(row["run"]).backbone) for _, row in self.rows(table)
        }
        return sorted(found)

    def families_in(self, table: str, backbone: str) -> list[Family]:
        """A backbone's families that a table has rows of, in the order of the methods."""
        runs = {row["run"] for _, row in self.rows(table)}
        return [family for family in in_order(runs) if family.backbone == backbone and family not in self._remedy_of]

    @staticmethod
    def place(split: str, group: str) -> Place:
        """The place of that split and group."""
        where = (HOME if split == HOME.split else ELSEWHERE).where
        return Place(split, group, where, group.removeprefix("site=") if group.startswith("site=") else "")

    def defined(self, table: str, column: str, **wanted: Any) -> bool:
        """Whether a column has any value in rows with the wanted values."""
        return any(row[column] is not None for _, row in self.rows(table, **wanted))

    def metrics_in(self, finding: str, places: Collection[Place], metrics: Collection[str]) -> list[str]:
        """Those of ``metrics`` that were evaluated at any of the places."""
        at = {(place.split, place.group) for place in places}
        seen = {row["metric"] for _, row in self.rows("metrics", finding=finding) if (row["split"], row["group"]) in at}
        return [metric for metric in metrics if metric in seen]

    def strongest(self, finding: str, backbone: str) -> dict[str, int]:
        """Each kind of simulated shift with its highest severity."""
        found: dict[str, int] = {}
        for family in self.families_in("stress", backbone):
            for _, row in self.rows("stress", finding=finding, run=family.run):
                found[row["kind"]] = max(row["severity"], found.get(row["kind"], 0))
        return found

    def matrix_sites(self, protocol: str, **wanted: Any) -> list[str]:
        """The hospitals that have a row in the site x site matrix, home first; of leave_one_out, those left out."""
        seen = set(self.distinct("matrix_scores", "row", protocol=protocol, **wanted))
        return [site for site in self.sites if site in seen]

    def learnt(self, backbone: str) -> list[str]:
        """The hospitals that a network learnt one after another, in their order."""
        order = {row["joins_at"]: row["site"] for _, row in self.rows("continual_scores", backbone=backbone)}
        return [order[step] for step in sorted(order)]

    def strategies(self, finding: str, backbone: str) -> list[str]:
        """The ways in which it did, the plainest first."""
        seen = set(self.distinct("continual_scores", "strategy", finding=finding, backbone=backbone))
        return [strategy for strategy in STRATEGIES if strategy in seen]

    @cached_property
    def galleries(self) -> list[tuple[str, str, str]]:
        """The galleries by name, their run and each of its findings."""
        found = {(row["gallery"], row["run"], row["finding"]) for _, row in self.rows("gallery_counts")}
        return sorted(found)

    def exhibits(self, gallery: str, finding: str, site: str) -> dict[str, list[Row]]:
        """The images to show by kind of call, the most confident first; kinds of too few patients are left out."""
        here = {"gallery": gallery, "finding": finding, "site": site}
        counts = {row["kind"]: row["num_patients"] for _, row in self.rows("gallery_counts", **here)}
        told = [kind for kind in CALLS if counts.get(kind, 0) >= max(self.min_cell, 1)]
        found = {kind: [row for _, row in self.rows("gallery", kind=kind, **here)] for kind in told}
        return {kind: rows for kind, rows in found.items() if rows}

    @cached_property
    def parts(self) -> dict[str, str]:
        """The page's sections in order, with their names in its table of contents; some have nothing to show."""
        has = {name: any(True for _ in self.rows(name)) for name in CONTRACTS}
        there = {
            "pixels": bool(self.without_pixels) or has["baseline_columns"],
            "choice": has["scores"] or has["rungs"] or has["search_outcome"],
            "subgroups": bool(self.backbones) and any(self.groups(finding) for finding in self.findings),
            "gallery": has["gallery_counts"],
            "mismatch": any(self.families_in("mismatch", backbone) for backbone in self.backbones),
            "diagnosis": has["diagnoses"] or has["probes"] or has["abstention"],
            "controls": has["controls"],
            "matrix": has["matrix_scores"],
            "stress": has["stress"],
            "remedies": bool(self._remedy_of) or has["remedies"],
            "membership": any(self.attacked(backbone) for backbone in self.backbones),
            "continual": has["continual_scores"],
        }
        there |= {name: not needed <= self.absent for name, needed in _NEEDED.items()}
        return {name: words for name, words in _PARTS.items() if there.get(name, True)}

    @cached_property
    def all_attacks(self) -> list[str]:
        """The attacks on membership that have a value anywhere."""
        return [name for name in ATTACKS if self.defined("attacks", "auroc", attack=name)]

    def attacked(self, backbone: str) -> list[Family]:
        """A backbone's families whose trainings with all labels were attacked."""
        known = {row["run"] for _, row in self.rows("attacks")}
        return [family for family in self.families_of(backbone) if family.run in known]

    def attacks(self, backbone: str) -> list[str]:
        """The attacks that have a value for any family of a backbone, the first known one where none has."""
        mine = [
            name
            for name in self.all_attacks
            if any(self.defined("attacks", "auroc", run=family.run, attack=name) for family in self.attacked(backbone))
        ]
        return mine or list(ATTACKS[:1])

    @cached_property
    def controlled(self) -> set[str]:
        """The families that have a control beside an attack."""
        return {row["run"] for _, row in self.rows("attacks") if row["control"] is not None}

    def notes_of_attacks(self, backbone: str) -> list[Noted]:
        """The different notes on attacks on a backbone's families."""
        mine = {family.run for family in self.attacked(backbone)}
        found = [Noted(n.key, tuple(r for r in n.rows if r["run"] in mine)) for n in self.notes("attacks")]
        # The key must be of a row that is told of.
        return [Noted((n.rows[0]["run"], n.rows[0]["attack"]), n.rows) for n in found if n.rows]

    def exposed(self, backbone: str) -> list[str]:
        """A backbone's trainings with all labels whose exposed patients were counted."""
        counted = {row["run"] for _, row in self.rows("exposures")}
        whole = self.rows("runs", backbone=backbone, label_fraction=1.0, shots=None)
        return [run for (run,), _ in whole if run in counted]

    @property
    def left_out(self) -> list[str]:
        """Of a partial report, the sections that every study has and this page lacks."""
        return [_PARTS[name] for name in _NEEDED if name not in self.parts]

    def methods_in(self, table: str, **wanted: Any) -> list[str]:
        """The methods in rows with the wanted values, in their order."""
        return [family.method for family in in_order({f"-{name}" for name in self.distinct(table, "method", **wanted)})]

    def sites_in(self, table: str, **wanted: Any) -> list[str]:
        """The hospitals that a table has rows of, home first."""
        seen = {row["site"] for _, row in self.rows(table, **wanted)}
        return [site for site in self.sites if site in seen]

    def texts(self, column: str, places: Collection[Place], **wanted: Collection[str]) -> list[Text]:
        """The different texts in ``column`` of metrics rows at ``places`` with wanted values; what they concern."""
        found: dict[str, tuple[MetricKey, dict[str, None], dict[str, None]]] = {}
        for place in places:
            for key, row in self.rows("metrics", split=place.split, group=place.group):
                if row[column] and all(row[name] in allowed for name, allowed in wanted.items()):
                    _, titles, metrics = found.setdefault(row[column], (key, {}, {}))
                    titles[place.title] = metrics[row["metric"]] = None
        return [Text(key, tuple(titles), tuple(metrics)) for key, titles, metrics in found.values()]

    def run_family(self, run: str) -> tuple[str, str]:
        """Backbone and method of a single training."""
        row = self.row("runs", (run,))
        if row is None or row["backbone"] is None or row["method"] is None:
            backbone, _, method = run.partition("-")
            return backbone, method
        return str(row["backbone"]), str(row["method"])

    @cached_property
    def not_imagenet(self) -> str:
        """What stands in every title and caption where weights called pretrained are not ImageNet's; else ""."""
        pretrained = [row for _, row in self.rows("runs") if row["method"] not in BASELINES]
        told = []
        for kind, words in _NOT_IMAGENET.items():
            concerned = [row for row in pretrained if (row["initialisation"] or "") == kind]
            if concerned:
                backbones = ", ".join(sorted({str(row["backbone"]) for row in concerned}))
                told.append(words if len(concerned) == len(pretrained) else f"{words} ({backbones})")
        return "; ".join(told)


def _kind(metric: str) -> str:
    if metric in CALIBRATION_METRICS:
        return "calibration"
    return "use" if metric.startswith(("ppv", "npv", "net_benefit")) else "main"


def in_order(runs: Collection[str]) -> list[Family]:
    """Families by name: by backbone, the known methods in the order of ``METHODS``, then others."""
    order = list(METHODS)
    found = [Study.family(name) for name in sorted(runs)]
    return sorted(found, key=lambda f: (f.backbone, order.index(f.base) if f.base in order else len(order), f.method))


def against_zero(row: Row | None) -> str:
    """Where the interval of a difference lies: above, below, includes; or no_interval, undefined, absent."""
    if row is None:
        return "absent"
    if row["value"] is None:
        return "undefined"
    if row["ci_low"] is None or row["ci_high"] is None:
        return "no_interval"
    if row["ci_low"] > 0:
        return "above"
    return "below" if row["ci_high"] < 0 else "includes"
