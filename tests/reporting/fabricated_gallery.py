"""The fabricated study's failure gallery: one training, all hospitals; false positives at east are too few to show."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting.gallery_figures import Exhibit, Wall
from pipeline.reporting.study import Study
from pipeline.tables.contract import make_table
from pipeline.tables.gallery import CALLS, GROUPS, REGIONS, CallCounts, Gallery, MapMeans

GALLERY, RUN = "pretrained", "resnet18-full_finetune-seed0"
FEW = 7


def frames(sources: tuple[str, ...], targets: tuple[str, ...], finding: str) -> dict[str, pd.DataFrame]:
    """Two images of each kind; no image at west has a map; at north nobody was called a false negative."""
    shown: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for site in sources + targets:
        split = "id_test" if site in sources else "ood_test"
        here = {"gallery": GALLERY, "run": RUN, "finding": finding, "site": site, "split": split}
        for kind in CALLS:
            patients = {("east", "false_positive"): FEW, ("north", "false_negative"): 0}.get((site, kind), 31)
            counts.append({**here, "kind": kind, "num_images": patients + patients // 5, "num_patients": patients})
            positive, right = kind.endswith("_positive"), kind.startswith("true_")
            for rank in range(1, 3 if patients else 1):
                chance = 0.99 - 0.1 * rank if positive else 0.1 * rank
                shares = dict.fromkeys(REGIONS, 0.07 * rank)
                unmapped = {"note": "no map for this architecture"}
                mapped = {"array_index": len(shown), "map_rows": 7, "map_columns": 7, "note": "", **shares}
                shown.append(
                    {**here, "kind": kind, "rank": rank, "image_id": f"{site}-{kind}-{rank}", "threshold": 0.413,
                     "label": int(positive == right), "logit": float(np.log(chance / (1 - chance))),
                     "probability": chance, **(unmapped if site == "west" else mapped)}
                )  # fmt: skip
        for group in GROUPS:
            last = group == GROUPS[-1]
            for region in REGIONS:
                value = {"value": -0.021 if last else 0.174, "ci_low": -0.05 if last else 0.15, "ci_high": 0.2}
                none = {"note": "no image has padding"} if region == "padding" else {**value, "note": ""}
                few = site == "east" and group == "false_positive"
                means.append(
                    {**here, "group": group, "region": region, **none, "area": None if last else 0.141,
                     "num_images": 40, "num_patients": FEW if few else 31}
                )  # fmt: skip
    return {
        "gallery": make_table(Gallery, shown),
        "gallery_counts": make_table(CallCounts, counts),
        "gallery_means": make_table(MapMeans, means),
    }


def walls(study: Study, side_px: int = 48) -> list[Wall]:
    """Images of grey, and maps that are bright at the left."""
    found = []
    for gallery, _, finding in study.galleries:
        for site in study.sites:
            exhibits = {
                kind: [
                    Exhibit(
                        row,
                        np.full((side_px, side_px), 40 + 9 * row["rank"], np.uint8),
                        None if row["array_index"] is None else left(side_px),
                    )
                    for row in rows
                ]
                for kind, rows in study.exhibits(gallery, finding, site).items()
            }
            if exhibits:
                found.append(Wall(gallery, finding, site, exhibits))
    return found


def left(side_px: int) -> Any:
    """255 at the left edge, 0 at the right."""
    return np.tile(np.linspace(255, 0, side_px).round().astype(np.uint8), (side_px, 1))
