"""The fabricated study's tables of choice and shift, beside those of ``fabricated``; seeded."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.tables.adaptation import Remedies
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.choice import SCORES, RankCorrelations, SearchOutcome, SearchRungs, TransferScores
from pipeline.tables.contract import make_table
from pipeline.tables.controls import Controls
from pipeline.tables.diagnosis import HYPOTHESES, OUTLYING_SCORES, Abstention, Diagnoses, Probes
from pipeline.tables.membership import ATTACKS, MembershipAttacks, MembershipExposures
from pipeline.tables.mismatch import Mismatch
from pipeline.tables.protocol import Openings, Protocols
from pipeline.tables.stress import KINDS, StressCurves

REMEDIES = ("coral", "prevalence", "temperature")
FEW = 7  # patients of the smallest group
_PLACES = (("id_test", "source", 400), ("ood_test", "target", 610), ("ood_test", "site=east", 380))

Rows = list[dict[str, Any]]


def more_metrics(rows: Rows, finding: str, backbone: str, interval: str) -> Rows:
    """Of a baseline without pixels, of a backbone's remedies, and of its methods' subgroups, from its own rows."""
    made: Rows = []
    own = [row for row in rows if row["run"].startswith(f"{backbone}-") and "seed" not in row["run"]]
    base = {"finding": finding, "interval": interval, "note": ""}
    for split, group, patients in _PLACES:
        place = {**base, "split": split, "group": group, "num_images": patients + 30, "num_patients": patients}
        for metric, value in (("auroc", 0.64), ("brier", 0.12)):
            row = {**place, "run": "no_pixels-logistic", "metric": metric, "value": value}
            made.append({**row, "ci_low": value - 0.05, "ci_high": value + 0.05})
        made.append({**place, "run": "no_pixels-logistic-seed0", "metric": "auroc", "value": 0.64, "interval": None})
    for remedy, gain in zip(REMEDIES, (-0.03, 0.0, 0.0), strict=True):
        for row in own:
            if row["run"] == f"{backbone}-full_finetune" and row["metric"] != "auroc_minus_scratch":
                made.append({**row, "run": f"{row['run']}-{remedy}"})
                if row["metric"] == "auroc" and (row["split"], row["group"]) in {place[:2] for place in _PLACES}:
                    moved = gain * (row["split"] == "ood_test")
                    limits = {"value": moved, "ci_low": moved - 0.02, "ci_high": moved + 0.02}
                    made.append({**made[-1], "metric": "auroc_minus_plain", **limits})
        for seed in (0, 1, 2):
            for split, group, patients in _PLACES:
                made.append(
                    {**base, "run": f"{backbone}-full_finetune-seed{seed}-adapt_{remedy}", "split": split,
                     "group": group, "metric": "auroc", "value": 0.7, "num_images": 480, "num_patients": patients}
                )  # fmt: skip
    levels = {"sex=F": 200, "sex=M": 190, "sex=F+age_band=80+": FEW, "sex=F+age_band=40-59": 193, "worst_sex": 190}
    for row in own:
        wanted = row["metric"] in ("auroc", "sensitivity", "specificity")
        if wanted and row["group"] in ("source", "target") and row["split"] != "id_val":
            for group, patients in levels.items():
                note = "sex=M" if group == "worst_sex" else ""
                made.append({**row, "group": group, "num_images": patients, "num_patients": patients, "note": note})
    return made


def frames(
    sources: tuple[str, ...], targets: tuple[str, ...], backbones: tuple[str, ...], methods: tuple[str, ...],
    finding: str,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """All of a study that left no stage out."""
    rng = np.random.default_rng(22)
    models = [(backbone, method) for backbone in backbones for method in methods]
    drawn = [model for model in models if model[0] == backbones[-1]]  # figures take their time
    return {
        "baseline_columns": make_table(BaselineColumns, _columns(finding)),
        "mismatch": make_table(Mismatch, _mismatch(models, targets)),
        **_choice(models, backbones, finding, rng),
        **_protocol(finding),
        "diagnoses": make_table(Diagnoses, _diagnoses(models, targets, finding)),
        "probes": make_table(Probes, _probes(sources, targets, backbones, finding)),
        "abstention": make_table(Abstention, _abstention(drawn, sources + targets, finding, rng)),
        "controls": make_table(Controls, _controls(models, backbones, finding)),
        "stress": make_table(StressCurves, _stress(drawn, finding, rng)),
        "remedies": make_table(Remedies, _remedies(backbones, targets, finding)),
        "attacks": make_table(MembershipAttacks, _attacks(models, rng)),
        "exposures": make_table(MembershipExposures, _exposures(models)),
    }


def _columns(finding: str) -> Rows:
    notes = {"kvp": "all null in training", "sex": None, "age_years": None, "model": "constant in training"}
    return [{"finding": finding, "column": name, "used": not note, "note": note} for name, note in notes.items()]


def _mismatch(models: list[tuple[str, str]], targets: tuple[str, ...]) -> Rows:
    undefined = {"mmd2": None, "home_mmd2": None, "p_value": None, "note": "needs 10 patients on each side"}
    row = {"mmd2": 0.0412, "home_mmd2": 0.0009, "p_value": 0.0005, "num_runs": 3, "note": ""}
    return [
        {"run": f"{backbone}-{method}", "site": site, **row, "num_images": 500, "num_patients": 450,
         **(undefined | {"num_patients": FEW} if site == targets[-1] else {})}
        for backbone, method in models
        for site in targets
    ]  # fmt: skip


def _choice(models: list[tuple[str, str]], backbones: tuple[str, ...], finding: str, rng: Any) -> dict[str, Any]:
    headless = {"value": None, "note": "the weights are random: no source classes"}
    scores = [
        {"backbone": backbone, "finding": finding, "score": score, "value": rng.normal(), "num_images": 1400,
         "note": "", **(headless if score == "leep" else {})}
        for backbone in backbones
        for score in SCORES
    ]  # fmt: skip
    ranks = [
        {"finding": finding, "score": score, "method": method, "split": split, "group": group,
         "weighted_tau": None if score == "leep" else 1.0, "spearman": None if score == "leep" else -1.0,
         "num_backbones": 0 if score == "leep" else 2, "note": "no backbone has both" if score == "leep" else ""}
        for score in SCORES
        for method in dict.fromkeys(method for _, method in models)
        for split, group in (("id_test", "source"), ("ood_test", "target"))
    ]  # fmt: skip
    rungs = [
        {"rung": rung, "epochs": 2 * 3**rung, "backbone": backbone, "method": method, "id_val_loss": 0.4 + 0.01 * n,
         "kept": n <= 3 - 3 * rung, "note": ""}
        for rung in (0, 1)
        for n, (backbone, method) in enumerate(models[: 8 - 4 * rung])
    ]  # fmt: skip
    outcome = [
        {"split": split, "group": group, "metric": metric, "backbone": models[0][0], "method": models[0][1],
         "value": 0.81, "rank": 4, "num_families": 12, "best_backbone": models[1][0], "best_method": models[1][1],
         "best_value": 0.83, "regret": 0.02, "note": "" if metric == "auroc" else "effusion undefined, left out"}
        for split, group, metric in
        (("id_val", "source", "log_loss"), ("id_test", "source", "auroc"), ("ood_test", "target", "auroc"))
    ]  # fmt: skip
    return {
        "scores": make_table(TransferScores, scores),
        "rank_correlations": make_table(RankCorrelations, ranks),
        "rungs": make_table(SearchRungs, rungs),
        "search_outcome": make_table(SearchOutcome, outcome),
    }


def _protocol(finding: str) -> dict[str, Any]:
    declared = {
        "statement": "protocol sealed before the test labels were opened; test labels opened 2 times",
        "hypothesis": "Full fine-tuning from ImageNet beats the twin from scratch by more than 0.05 elsewhere.",
        "metric": "auroc", "finding": finding, "split": "ood_test", "group": "target", "margin": 0.05,
        "run": "resnet18-full_finetune", "against": "scratch", "sample_size": 600,
    }  # fmt: skip
    hashes = {"protocol_sha256": "a1" * 32, "params_sha256": "b2" * 32}
    log = [(0, "sealed", ""), (1, "first opening", "c3" * 32), (2, "params changed", "c3" * 32)]
    entries = [
        {"entry": number, "opening": opening, "reason": reason, **hashes, "splits_sha256": splits}
        for number, (opening, reason, splits) in enumerate(log, start=1)
    ]
    return {"protocol": make_table(Protocols, [declared]), "openings": make_table(Openings, entries)}


def _diagnoses(models: list[tuple[str, str]], targets: tuple[str, ...], finding: str) -> Rows:
    tested = {
        "no_shift": {"verdict": "rejected", "test": "embedding_mmd", "statistic": 0.04, "p_value": 0.0004},
        "label_shift_only": {
            "verdict": "compatible", "test": "matched_embedding_mmd", "statistic": 0.01, "p_value": 0.41,
            "estimate": 0.21, "ci_low": 0.12, "ci_high": 0.33, "note": "prevalence at home 0.13",
            "likelihood": 0.24, "likelihood_low": 0.16, "likelihood_high": 0.31,
        },
        "covariate_shift_only": {"verdict": "compatible", "note": "without target labels nothing can reject it"},
        "label_and_covariate_shift": {
            "verdict": "undetermined", "estimate": -0.4, "ci_low": -1.2, "ci_high": 0.3, "note": "too few positives",
        },
    }  # fmt: skip
    return [
        {"finding": finding, "backbone": backbone, "method": method, "site": site, "hypothesis": hypothesis,
         "num_patients": FEW if site == targets[-1] else 300, "note": "", **tested[hypothesis]}
        for backbone, method in models
        for site in targets
        for hypothesis in HYPOTHESES
    ]  # fmt: skip


def _probes(sources: tuple[str, ...], targets: tuple[str, ...], backbones: tuple[str, ...], finding: str) -> Rows:
    blank = {"finding": "", "backbone": "", "method": "", "site": "", "cue": "", "num_images": 900}
    found = {"auroc": 0.97, "ci_low": 0.95, "ci_high": 0.98, "num_patients": 800, "note": ""}
    rows: Rows = []
    for backbone in backbones:
        own = {**blank, **found, "backbone": backbone}
        rows += [{**own, "kind": "domain", "site": site, "a_distance": 1.62} for site in targets]
        rows += [{**own, "kind": "site", "finding": finding, "site": site} for site in sources]
        rows += [{**own, "kind": "label_within_site", "finding": finding, "site": site} for site in sources]
        rows += [
            {**own, "kind": "out_of_distribution", "site": site, "cue": "mahalanobis", "auroc": 0.31}
            for site in targets
        ]
    one_class = {"auroc": None, "ci_low": None, "ci_high": None, "note": "the cue is the same on all images"}
    shortcuts = [{"cue": "corners"}, {"cue": "file", **one_class}]
    return rows + [{**blank, **found, "kind": "shortcut", "finding": finding, **row} for row in shortcuts]


def _abstention(models: list[tuple[str, str]], sites: tuple[str, ...], finding: str, rng: Any) -> Rows:
    rows: Rows = []
    for backbone, method in models:
        for site in sites:
            for score in OUTLYING_SCORES:
                for coverage in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
                    value = 0.8 + 0.1 * (1 - coverage) + rng.normal(0, 0.01)
                    rows.append(
                        {"finding": finding, "backbone": backbone, "method": method, "site": site, "score": score,
                         "coverage": coverage, "auroc": value, "ci_low": value - 0.05, "ci_high": value + 0.04,
                         "sensitivity": 0.6, "num_images": 300, "num_patients": 280, "note": ""}
                    )  # fmt: skip
    return rows


def _controls(models: list[tuple[str, str]], backbones: tuple[str, ...], finding: str) -> Rows:
    rows: Rows = []
    for split, patients in (("id_test", 400), ("ood_test", 610)):
        place = {"finding": finding, "split": split, "num_images": patients + 30, "num_patients": patients}
        found = {"verdict": "passed", "value": 0.503, "ci_low": 0.49, "ci_high": 0.52, "p_value": 0.4, "p_holm": 0.8}
        missed = {"misses": 0.05, "misses_low": 0.001, "misses_high": 0.249, "num_runs": 20, "note": ""}
        rows += [
            {**place, **found, **missed, "control": "permuted_labels", "run": f"{backbone}-linear_probe"}
            for backbone in backbones
        ]
        for backbone, method in models:
            own = {**place, "control": "same_method_twice", "run": f"{backbone}-{method}", "num_runs": 1}
            if method == "scratch":
                rows.append({**own, "verdict": "undetermined", "note": "needs 4 trainings, 2 a group; there are 3"})
            else:
                limits = {"value": -0.01, "ci_low": -0.04, "ci_high": 0.02, "outcome": "undecided", "note": ""}
                rows.append({**own, **limits, "verdict": "passed", "num_runs": 3, "p_value": 0.5, "p_holm": 1.0})
    return rows


def _stress(models: list[tuple[str, str]], finding: str, rng: Any) -> Rows:
    units = dict.fromkeys(KINDS, "SD, share of the grey range") | {"blur": "SD, share of the edge"}
    rows: Rows = []
    for backbone, method in models:
        for kind in KINDS:
            for severity in range(6):
                fall = -0.03 * severity * (kind != "gamma") + rng.normal(0, 0.002)
                moved = {"difference": fall, "difference_low": fall - 0.03, "difference_high": fall + 0.03}
                rows.append(
                    {"run": f"{backbone}-{method}", "finding": finding, "kind": kind, "severity": severity,
                     "strength": 0.027 * severity, "unit": units[kind], "value": 0.84 + fall, "ci_low": 0.8 + fall,
                     "ci_high": 0.88 + fall, "num_images": 480, "num_patients": 400, "note": "",
                     **(moved if severity else {})}
                )  # fmt: skip
    return rows


def _remedies(backbones: tuple[str, ...], targets: tuple[str, ...], finding: str) -> Rows:
    decided: dict[str, dict[str, Any]] = {
        "coral": {"decision": "applied", "selection": "source validation", "note": "as trained"},
        "prevalence": {"decision": "refused", "note": "the prevalence cannot be told from 31 patients"},
        "temperature": {"decision": "applied", "num_labelled_used": 20, "temperature": 1.4, "note": "few-label"},
    }
    return [
        {"run": f"{backbone}-full_finetune-seed{seed}-adapt_{remedy}", "site": site, "finding": finding,
         "remedy": remedy, "num_adapt_images": 200, "num_labelled_used": 0, **decided[remedy]}
        for backbone in backbones
        for remedy in REMEDIES
        for seed in (0, 1, 2)
        for site in targets
    ]  # fmt: skip


def _attacks(models: list[tuple[str, str]], rng: Any) -> Rows:
    """Full fine-tuning gives much away; the references of one method are few, of another there are none."""
    rows: Rows = []
    for backbone, method in models:
        for run in (f"{backbone}-{method}", *(f"{backbone}-{method}-seed{seed}" for seed in (0, 1, 2))):
            for attack in ATTACKS:
                value = (0.71 if method == "full_finetune" else 0.53) + rng.normal(0, 0.01)
                row = {
                    "run": run, "attack": attack, "num_runs": 1 if "seed" in run else 3, "num_members": 1200,
                    "num_others": 400, "num_controls": 0, "num_references": 0, "note": "", "auroc": value,
                    "ci_low": value - 0.04, "ci_high": value + 0.04, "interval": "95 %",
                }  # fmt: skip
                if method == "lp_ft":
                    row |= {"control": 0.502, "control_low": 0.46, "control_high": 0.54, "num_controls": 600}
                if attack == "calibrated" and method != "lp_ft":
                    row |= dict.fromkeys(("auroc", "ci_low", "ci_high", "interval"))
                    row |= {"note": "no run left a training patient out", "num_members": 0}
                rows.append(row)
    return rows


def _exposures(models: list[tuple[str, str]]) -> Rows:
    rows: Rows = []
    for backbone, method in models:
        leaks = method == "full_finetune"
        for seed in (0, 1, 2):
            for attack in ATTACKS:
                for rate in (0.01, 0.1):
                    found = {"true_positive_rate": 0.34 if leaks else 0.11, "ci_low": 0.28, "ci_high": 0.4}
                    counted = {"exposed_share": 0.2, "exposed_at_least": 7 if leaks else 0, "note": ""}
                    if rate == 0.01:
                        found = {"true_positive_rate": None, "ci_low": 0.0, "ci_high": 0.3}
                        counted |= {"exposed_share": None, "note": "a threshold at this rate needs 99"}
                    rows.append(
                        {"run": f"{backbone}-{method}-seed{seed}", "attack": attack, "false_positive_rate": rate,
                         "num_members": 1200, "num_others": 400, **found, **counted}
                    )  # fmt: skip
    return rows
