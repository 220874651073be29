"""The fabricated study's tables of one hospital after another; seeded."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.tables.continual import MEASURES, STRATEGIES, ContinualMeasures, ContinualScores, ContinualSteps
from pipeline.tables.contract import make_table

BACKBONE = "resnet18"
SEQUENCE = ("north", "east", "west")
SEEDS = (0, 1)
ONE_CLASS = "one class only (positives: 0)"

Rows = list[dict[str, Any]]


def frames(finding: str) -> dict[str, pd.DataFrame]:
    """What continual and forgetting left of one network; west has one class alone."""
    return {
        "continual_steps": make_table(ContinualSteps, _steps()),
        "continual_scores": make_table(ContinualScores, _scores(finding)),
        "continual_measures": make_table(ContinualMeasures, _measures(finding)),
    }


def _steps() -> Rows:
    return [
        {"run": f"{BACKBONE}-{strategy}-seed{seed}", "step": step, "backbone": BACKBONE, "strategy": strategy,
         "seed": seed, "site": site, "role": "source" if site == "north" else "target", "num_train_images": 90 + step,
         "num_train_patients": 70 + step, "num_earlier_patients": 0 if strategy == "naive" else 9 * step,
         "num_val_patients": 21, "kept_epoch": 1, "val_loss": 0.41, "model_sha256": f"{step}{seed}" * 32}
        for strategy in STRATEGIES
        for seed in SEEDS
        for step, site in enumerate(SEQUENCE)
    ]  # fmt: skip


def _scores(finding: str) -> Rows:
    rng = np.random.default_rng(23)
    rows: Rows = []
    for strategy in STRATEGIES:
        for seed in (None, *SEEDS):
            for step in range(len(SEQUENCE)):
                for place, site in enumerate(SEQUENCE):
                    lost = 0.12 * (step - place) * (strategy == "naive") if place < step else 0.0
                    value = 0.84 - lost - 0.2 * (place > step) + rng.normal(0, 0.01)
                    row = {"value": value, "ci_low": value - 0.06, "ci_high": value + 0.05, "note": ""}
                    if site == "west":
                        row = {"value": None, "note": ONE_CLASS}
                    rows.append(
                        {"run": f"{BACKBONE}-{strategy}" + ("" if seed is None else f"-seed{seed}"), "finding": finding,
                         "step": step, "site": site, "backbone": BACKBONE, "strategy": strategy, "seed": seed,
                         "joins_at": place, "num_runs": len(SEEDS) if seed is None else 1, "num_images": 130,
                         "num_patients": 9 if site == "west" else 110, **row}
                    )  # fmt: skip
    return rows


def _measures(finding: str) -> Rows:
    rows: Rows = []
    for strategy in STRATEGIES:
        for measure in MEASURES:
            about = SEQUENCE if measure == "final_auroc" else SEQUENCE[1:] if "forward" in measure else SEQUENCE[:-1]
            for site in ("", *about):
                value = 0.79 if measure == "final_auroc" else 0.12 if strategy == "naive" else -0.01
                row: dict[str, Any] = {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.06, "note": ""}
                if strategy != "naive":
                    row |= {"difference": 0.04, "difference_low": -0.01, "difference_high": 0.09}
                if site == "west":
                    row = {"value": None, "note": ONE_CLASS}
                rows.append(
                    {"run": f"{BACKBONE}-{strategy}", "finding": finding, "measure": measure, "site": site,
                     "backbone": BACKBONE, "strategy": strategy, "num_runs": len(SEEDS), "num_sites": 2,
                     "num_patients": 220, **row}
                )  # fmt: skip
    return rows
