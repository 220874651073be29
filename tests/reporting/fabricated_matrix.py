"""The fabricated study's site x site matrix; seeded."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.tables.contract import make_table
from pipeline.tables.matrix import MatrixScores

BACKBONE = "resnet18"
SITES = ("north", "south", "east", "west")
TOO_FEW = "too few labelled patients: 2 with the finding, 5 are needed"


def frames(finding: str) -> dict[str, pd.DataFrame]:
    """Linear probes for every pair and all but one; the west cannot train."""
    rng = np.random.default_rng(24)
    rows: list[dict[str, Any]] = []
    for protocol in ("single_source", "leave_one_out"):
        for row in SITES:
            for site in SITES if protocol == "single_source" else (row,):
                here = protocol == "single_source" and row == site
                value = (0.82 if here else 0.7) + rng.normal(0, 0.02)
                cell = {"value": value, "ci_low": value - 0.07, "ci_high": value + 0.05, "num_runs": 3, "note": ""}
                if not here and site != "west":
                    cell |= {"difference": 0.82 - value, "difference_low": -0.01, "difference_high": 0.2}
                if protocol == "single_source" and row == "west":
                    cell = {"value": None, "num_runs": 0, "note": TOO_FEW}
                rows.append(
                    {"backbone": BACKBONE, "method": "linear_probe", "protocol": protocol, "finding": finding,
                     "row": row, "site": site, "in_distribution": here, "num_images": 480,
                     "num_patients_per_class": None if cell["value"] is None else 9 if here else 31,
                     "num_patients": 9 if site == "west" else 390, **cell}
                )  # fmt: skip
    return {"matrix_scores": make_table(MatrixScores, rows)}
