"""A study that never was: two home hospitals, two elsewhere, two backbones, six methods. Seeded."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from reporting import fabricated_continual, fabricated_gallery, fabricated_matrix, fabricated_shift

from pipeline.reporting.figures import SiteSamples
from pipeline.reporting.study import Study
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Calibration, Efficiency, LabelSavings, Metrics, Overfitting, Thresholds, Verdicts
from pipeline.tables.files import Deidentification, Notes
from pipeline.tables.images import Flow, Leakage
from pipeline.tables.labels import LabelIssues
from pipeline.tables.quality import OUTLIER_KINDS, Balance, GreyHistograms, OutlierCounts, Outliers, TableOne
from pipeline.tables.training import Curves, Runs

SOURCES, TARGETS = ("north", "south"), ("east", "west")
BACKBONES = ("mobilenet_v2", "resnet18")
METHODS = ("full_finetune", "l2_sp", "linear_probe", "lp_ft", "scratch", "scratch_converged")
BASELINES = ("scratch", "scratch_converged")
FINDING = "pneumonia"
INTERVAL = "95 % percentile interval, 2000 bootstrap resamples of patients"


def study(**changes: Any) -> Study:
    """The study; ``changes`` replace its fields, ``frames`` only the tables named."""
    made = Study(
        title="Pneumonia on chest radiographs",
        notice="",
        sources=SOURCES,
        targets=TARGETS,
        min_cell=11,
        frames=_frames(),
        params_yaml="report:\n  title: Pneumonia\nseed: 7\n",
        versions={"torch": "2.15.0", "numpy": "2.4.6"},
        data_hashes={"split: flow": "ab12" * 16},
    )
    if "frames" in changes:
        changes["frames"] = {**made.frames, **changes["frames"]}
    return replace(made, **changes)


def samples(side_px: int = 48) -> dict[str, list[SiteSamples]]:
    """Grey discs, brighter with the finding."""
    rows, columns = np.mgrid[-1 : 1 : side_px * 1j, -1 : 1 : side_px * 1j]
    disc = (1 - np.clip(rows**2 + columns**2, 0, 1)) * 160

    def images(count: int, extra: int) -> Any:
        return np.stack([disc + extra + 8 * i for i in range(count)]).astype(np.uint8)

    return {FINDING: [SiteSamples(s, images(4, 60), images(4 - i % 2, 0)) for i, s in enumerate(SOURCES + TARGETS)]}


def suspects(side_px: int = 48) -> list[Any]:
    """An image for each of the outliers."""
    return [np.full((side_px, side_px), 60 * number, np.uint8) for number in range(3)]


def initialised(kind: str) -> pd.DataFrame:
    """The runs with pretrained weights of another origin."""
    runs = _frames()["runs"].copy()
    runs.loc[~runs["method"].isin(BASELINES), "initialisation"] = kind
    return runs


@cache
def _frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(20)
    rows = {name: [] for name in ("metrics", "calibration", "thresholds", "runs", "curves")}
    gains = {"scratch": 0.0, "scratch_converged": 0.01, "linear_probe": 0.012, "full_finetune": 0.058}
    gains |= {"l2_sp": 0.05, "lp_ft": 0.064}
    for backbone in BACKBONES:
        for method in METHODS:
            _family(rows, rng, backbone, method, gains[method])
    own = [fabricated_shift.more_metrics(rows["metrics"], FINDING, backbone, INTERVAL) for backbone in BACKBONES]
    rows["metrics"] += own[0] + [row for row in own[1] if not row["run"].startswith("no_pixels")]
    rows["metrics"] += [*_minus_no_pixels(rows["metrics"])]
    made = {
        "metrics": make_table(Metrics, rows["metrics"]),
        "calibration": make_table(Calibration, rows["calibration"]),
        "thresholds": make_table(Thresholds, rows["thresholds"]),
        "runs": make_table(Runs, rows["runs"]),
        "curves": make_table(Curves, rows["curves"]),
    }
    shift = fabricated_shift.frames(SOURCES, TARGETS, BACKBONES, METHODS, FINDING)
    shift |= fabricated_continual.frames(FINDING) | fabricated_gallery.frames(SOURCES, TARGETS, FINDING)
    shift |= fabricated_matrix.frames(FINDING)
    return {**made, **_transfer(), **_who(), **shift}


def _minus_no_pixels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chosen = [row for row in rows if row["metric"] == "auroc" and row["group"] in ("source", "target")]
    return [
        {**row, "metric": "auroc_minus_no_pixels", "value": 0.11, "ci_low": 0.05, "ci_high": 0.18}
        for row in chosen
        if "seed" not in row["run"] and not row["run"].startswith("no_pixels") and row["split"] != "id_val"
    ]


def _family(rows: dict[str, list[Any]], rng: Any, backbone: str, method: str, gain: float) -> None:
    family = f"{backbone}-{method}"
    groups = [("id_val", "source", 0.83, 410)]
    groups += [
        ("id_test", g, m, n)
        for g, m, n in (("source", 0.82, 400), ("site=north", 0.83, 230), ("site=south", 0.81, 170))
    ]
    groups += [
        ("ood_test", g, m, n) for g, m, n in (("target", 0.75, 610), ("site=east", 0.78, 380), ("site=west", 0.69, 9))
    ]
    groups += [("ood_test", "worst_site", 0.69, 9), ("ood_test", "target_minus_source", -0.07, 1010)]
    base = {"run": family, "finding": FINDING}
    for split, group, middle, patients in groups:
        gap = group == "target_minus_source"
        here = {**base, "split": split, "group": group, "num_images": int(patients * 1.2), "num_patients": patients}
        values = {
            "auroc": (middle + (0 if gap else gain - 0.04), 0.03),
            "average_precision": (-0.05 if gap else 0.41 + gain, 0.06),
            "brier": (0.012 if gap else 0.1012, 0.01),
            "log_loss": (0.05 if gap else 0.351, 0.02),
            "calibration_slope": (-0.2 if gap else 0.93, 0.2),
            "calibration_intercept": (-0.3 if gap else -0.12, 0.25),
            "ece": (0.02 if gap else 0.034, None),
            "sensitivity": (-0.1 if gap else 0.62, 0.07),
            "specificity": (-0.02 if gap else 0.9, 0.02),
            "prevalence": (0.03 if gap else 0.131, 0.02),
            "brier_calibration": (0.002 if gap else 0.0061, None),
            "brier_refinement": (0.01 if gap else 0.0951, None),
            "ppv": (-0.1 if gap else 0.48, 0.08),
            "npv": (-0.02 if gap else 0.93, 0.02),
            "ppv_at_2_5_percent": (-0.02 if gap else 0.13, 0.03),
            "net_benefit": (-0.01 if gap else 0.051, 0.01),
            "net_benefit_all": (0.01 if gap else -0.27, 0.02),
        }
        if method != "scratch" and split != "id_val":
            values["auroc_minus_scratch"] = ((0.004 if gap else gain) + rng.normal(0, 0.004), 0.035)
        for metric, (value, spread) in values.items():
            value = float(value + rng.normal(0, 0.004))
            row = {**here, "metric": metric, "value": value, "note": "site west" if group == "worst_site" else ""}
            if spread is not None:
                row |= {"ci_low": value - spread, "ci_high": value + spread * 0.9, "interval": INTERVAL}
            if group == "site=west" and metric == "calibration_slope":
                row |= {
                    "value": None,
                    "ci_low": None,
                    "ci_high": None,
                    "note": "undefined: fewer than 10 positives",
                }
            rows["metrics"].append(row)
    for group in ("source", "target"):
        for number in range(8):
            x = (number + 0.7) ** 2 / 90
            y = min(1.0, max(0.0, x * (0.95 if group == "source" else 0.7) + rng.normal(0, 0.02)))
            rows["calibration"].append(
                {**base, "group": group, "bin": number, "mean_probability": x, "observed_rate": y, "num_images": 50}
            )
    for seed in (0, 1, 2):
        run = f"{family}-seed{seed}"
        for split, group in (("id_test", "source"), ("ood_test", "target")):
            auroc = 0.8 + gain - (0.07 if group == "target" else 0) + rng.normal(0, 0.01)
            rows["metrics"].append(
                {"run": run, "finding": FINDING, "split": split, "group": group, "metric": "auroc", "value": auroc,
                 "num_images": 480, "num_patients": 400}
            )  # fmt: skip
        rows["thresholds"].append(
            {"run": run, "finding": FINDING, "threshold": 0.31 + rng.normal(0, 0.02), "wanted_specificity": 0.9,
             "reached_specificity": 0.903, "num_images": 492}
        )  # fmt: skip
        rows["runs"].append(
            {"run": run, "backbone": backbone, "method": method, "seed": seed, "label_fraction": 1.0, "draw": 0,
             "initialisation": "scratch" if method in BASELINES else "imagenet",
             "weights_name": None if method in BASELINES else "IMAGENET1K_V1",
             "weights_sha256": None if method in BASELINES else ("5c" if backbone == "resnet18" else "7e") * 32,
             "num_train_images": 1440, "num_train_patients": 1200, "num_parameters": 11_177_025,
             "model_sha256": f"{rng.integers(16**8):08x}" * 8}
        )  # fmt: skip
        phases = {"lp_ft": ("probe", "finetune"), "linear_probe": ("probe",)}.get(method, ("finetune",))
        for phase in phases:
            for epoch in range(8):
                loss = 0.32 + 0.35 * np.exp(-epoch / 2.5) - gain
                probe = phase == "probe"
                rows["curves"].append(
                    {"run": run, "phase": phase, "epoch": epoch,
                     "train_loss": None if probe else loss - 0.01 * epoch,
                     "id_val_loss": loss + 0.006 * abs(epoch - 4) + rng.normal(0, 0.004),
                     "learning_rate": 1e-3, "kept": epoch == 4}
                )  # fmt: skip


def _transfer() -> dict[str, pd.DataFrame]:
    """What is said of transfer: verdicts of each kind, curves with shares and shots, and losses."""
    rng = np.random.default_rng(21)
    verdicts: list[dict[str, Any]] = []
    efficiency: list[dict[str, Any]] = []
    savings: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    places = [("id_test", g, n) for g, n in (("source", 400), ("site=north", 230), ("site=south", 170))]
    places += [("ood_test", g, n) for g, n in (("target", 610), ("site=east", 380), ("site=west", 9))]
    judged = {"full_finetune": ("helps", 0.06, 0.03), "l2_sp": ("harms", -0.07, 0.04)}
    judged |= {"linear_probe": ("equivalent", 0.004, 0.02), "lp_ft": ("undecided", 0.02, 0.05)}
    for backbone in BACKBONES:
        for method in METHODS:
            family = f"{backbone}-{method}"
            losses.append(
                {"run": family, "phase": "all", "train_loss": 0.301, "id_val_loss": 0.352, "gap": 0.051, "num_runs": 3}
            )
            if method not in BASELINES:
                losses.append({"run": family, "phase": f"probe {FINDING}", "id_val_loss": 0.4, "num_runs": 3})
                for against in BASELINES[: 2 if backbone == "resnet18" else 1]:
                    for split, group, patients in places:
                        key = {"run": family, "finding": FINDING, "split": split, "group": group, "against": against}
                        told = _verdict(*judged[method], rng) if group != "site=west" else {"note": "one class only"}
                        settled = {"margin": 0.05, "alpha": 0.05, "num_patients": patients, "num_runs": 3}
                        verdicts.append({"note": "unequal tuning budget: 1 against 3", **key, **settled, **told})
            for split, group, less in (("id_test", "source", 0.0), ("ood_test", "target", 0.07)):
                curve = {"finding": FINDING, "split": split, "group": group, "curve": family}
                gain = 0.06 * (method not in BASELINES)
                budgets = [("share", 0.1, None, 120.0), ("share", 0.3, None, 360.0), ("all", 1.0, None, 1200.0)]
                budgets += [("shots", None, 5, 10.0), ("shots", None, 20, 40.0)] * (method == "linear_probe")
                for budget, fraction, shots, patients in budgets:
                    variant = {"share": f"-labels{100 * (fraction or 0):g}", "shots": f"-shots{shots}", "all": ""}
                    value = 0.52 + 0.09 * np.log10(patients) + gain - less + rng.normal(0, 0.004)
                    efficiency.append(
                        {**curve, "run": family + variant[budget], "backbone": backbone, "method": method,
                         "budget": budget, "label_fraction": fraction, "shots": shots, "labelled_patients": patients,
                         "train_tflop": patients * (3.1 if method == "linear_probe" else 40.0 + 9 * gain),
                         "value": value, "ci_low": value - 0.04, "ci_high": value + 0.035}
                    )  # fmt: skip
                if method not in BASELINES:
                    row = {
                        **curve,
                        "budget": "share",
                        "against": "scratch",
                        "value": 0.7971 - less,
                        "all_patients": 1200.0,
                    }
                    reached = {"labelled_patients": 272.4, "saving": 1 - 272.4 / 1200, "bound": "reached"}
                    never = {"bound": "not_reached", "note": "its AUROC is not reached"}
                    savings.append(row | (never if method == "l2_sp" else reached))
                if method == "linear_probe":
                    least = {"labelled_patients": 10.0, "saving": 1 - 10 / 1200, "bound": "at_least"}
                    savings.append({**row, "budget": "shots", **least})
    settled = {"margin": 0.05, "alpha": 0.05, "num_patients": 610, "num_runs": 3, "note": ""}
    verdicts += [
        {"run": f"{backbone}-full_finetune-{remedy}", "finding": FINDING, "split": "ood_test", "group": "target",
         "against": "full_finetune", **settled, **_verdict(verdict, value, 0.02, rng)}
        for backbone in BACKBONES
        for remedy, verdict, value in (("coral", "harms", -0.03), ("prevalence", "equivalent", 0.0))
    ]  # fmt: skip
    return {
        "verdicts": make_table(Verdicts, verdicts),
        "efficiency": make_table(Efficiency, efficiency),
        "savings": make_table(LabelSavings, savings),
        "overfitting": make_table(Overfitting, losses),
    }


def _verdict(verdict: str, value: float, spread: float, rng: Any) -> dict[str, Any]:
    value += rng.normal(0, 0.002)
    p_value = {"helps": 3e-6, "harms": 0.0031, "equivalent": 0.71, "undecided": 0.33}[verdict]
    p_equivalence = {"equivalent": 0.0004}.get(verdict, 0.4)
    return {
        "verdict": verdict, "difference": value, "ci_low": value - spread, "ci_high": value + spread,
        "p_value": p_value, "p_holm": min(1.0, 4 * p_value),
        "p_equivalence": p_equivalence, "p_equivalence_holm": min(1.0, 4 * p_equivalence),
    }  # fmt: skip


OUTCOME_OF = {"localizer": "quarantined", "missing_label": "unused", "patient_in_source": "unused"}


def _who() -> dict[str, pd.DataFrame]:
    flow: list[dict[str, Any]] = []
    table_one: list[dict[str, Any]] = []
    for site, files in zip(SOURCES + TARGETS, (1403, 988, 760, 21), strict=True):
        flow.append(_flow(site, 0, "inventory", "remaining", "", files))
        left = files
        steps: dict[str, dict[str, int]] = {
            "ingest": {"not_dicom": 12, "localizer": 31} if files > 100 else {"not_dicom": 1},
            "preprocess": {"inconsistent_geometry": 3, "unsupported_photometric": 17} if files > 100 else {},
            "split": {"missing_label": 44, "patient_in_source": 4} if files > 100 else {"missing_label": 2},
        }
        for step, (stage, losses) in enumerate(steps.items(), start=1):
            for reason, number in losses.items():
                flow.append(_flow(site, step, stage, OUTCOME_OF.get(reason, "rejected"), reason, number))
            left -= sum(losses.values())
            flow.append(_flow(site, step, stage, "remaining", "", left))
        splits = ("train", "id_val", "id_test") if site in SOURCES else ("target_adapt", "ood_test")
        for split in splits:
            total = left // len(splits)
            positive, unknown = total // 8, total // 50
            levels = {"present": positive, "absent": total - positive - unknown, "not annotated": unknown}
            table_one += _levels(site, split, "total", {"": total}, True)
            table_one += _levels(site, split, f"finding: {FINDING}", levels, True)
            table_one += _levels(site, split, f"image finding: {FINDING}", levels, False)
            table_one += _levels(site, split, "device", {"Acme 3000, X_2": total - 3, "missing": 3}, False)
            ages = {"median": 61.5, "first_quartile": 50.0, "third_quartile": 72.25}
            known, missing = _levels(site, split, "age_years", {"known": total - 12, "missing": 12}, True)
            table_one += [{**known, **ages}, missing]
    checks = [
        ("patients_in_two_splits", "patients with images in more than one split", 0, True),
        ("pixels_in_two_splits", "different images with identical pixels in 2 splits", 14, True),
        ("patients_at_two_sites", "patients with images at more than one site", 4, False),
    ]
    names = ("check", "description", "count", "must_be_zero")
    issues = [{"site": "north", "issue": "duplicate_row", "count": 23}]
    notes = [{"site": "north", "note": "missing_preamble", "num_files": 14}]
    treatments = [
        {"site": site, "action": action, "treatment": treatment, "num_elements": 1000 + number, "num_files": 700}
        for site in SOURCES + TARGETS
        for number, (action, treatment) in enumerate([("X", "removed"), ("Z/D", "replaced"), ("not_listed", "kept")])
        if (site, action) != ("north", "Z/D")
    ]
    return {
        "notes": make_table(Notes, notes),
        "deidentification": make_table(Deidentification, treatments),
        "flow": make_table(Flow, flow),
        "table_one": make_table(TableOne, table_one),
        "balance": make_table(Balance, _balance(sorted({row["variable"] for row in table_one}))),
        **_quality(),
        "leakage": make_table(Leakage, [dict(zip(names, check, strict=True)) for check in checks]),
        "issues": make_table(LabelIssues, issues),
    }


def _levels(site: str, split: str, variable: str, levels: dict[str, int], of_patients: bool) -> list[dict[str, Any]]:
    """One patient an image, so that a level's patients and images are as many."""
    return [
        {"site": site, "split": split, "variable": variable, "level": level, "of_patients": of_patients,
         "num_patients": number, "num_studies": number, "num_images": number, "share": number / sum(levels.values())}
        for level, number in levels.items()
    ]  # fmt: skip


def _balance(variables: list[str]) -> list[dict[str, Any]]:
    undefined = "undefined: no value occurs on both sides"
    return [
        {"site": site, "variable": name, "smd": None if name == "device" else 0.12,
         "note": undefined if name == "device" else None, "num_patients": 600 if site == "east" else 9}
        for site in TARGETS
        for name in variables
        if name != "total"
    ]  # fmt: skip


def _quality() -> dict[str, pd.DataFrame]:
    histograms = [
        {"site": site, "bin": number, "grey": (number + 0.5) / 64, "share": 0.0 if number < 3 else 1 / 61}
        for site in SOURCES + TARGETS
        for number in range(64)
    ]
    outliers = [
        {"image_id": f"{number:032x}", "site": site, "kind": kind, "score": 4.0 + number, "threshold": 3.5}
        for number, (site, kind) in enumerate([("north", "unusual"), ("east", "blank"), ("north", "cropped")])
    ]
    counts = [
        {"site": site, "kind": kind, "num_images": 700, "num_judged": 690, "num_outliers": number}
        for site in SOURCES + TARGETS
        for number, kind in enumerate(OUTLIER_KINDS, start=9)
    ]
    return {
        "histograms": make_table(GreyHistograms, histograms),
        "outliers": make_table(Outliers, outliers),
        "outlier_counts": make_table(OutlierCounts, counts),
    }


def _flow(site: str, step: int, stage: str, kind: str, reason: str, number: int) -> dict[str, Any]:
    known = stage not in ("inventory", "ingest") or (stage == "ingest" and kind == "remaining")
    return {
        "site": site,
        "step": step,
        "stage": stage,
        "kind": kind,
        "reason": reason,
        "num_files": number,
        "num_images": number if known else None,
        "num_patients": max(1, number * 5 // 6) if known else None,
    }
