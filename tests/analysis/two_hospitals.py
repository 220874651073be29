"""Predictions of two methods at a source and a target; shared by the tests of what is drawn from them."""

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.tables.contract import make_table
from pipeline.tables.predictions import Predictions


def predictions(num=60, seeds=(1, 2), **changes):
    """Two hospitals; two images a patient; scores rounded, so that some are equal."""
    rows = []
    for method in ("scratch", "lp_ft"):
        for seed in seeds:
            rng = np.random.default_rng([seed, len(method)])
            for site, split in (("home", "id_val"), ("home", "id_test"), ("away", "ood_test")):
                labels = np.arange(num) % 3 == 0
                logits = np.round(1.5 * labels + rng.normal(size=num) - 0.5, 1)
                rows += [
                    {
                        "image_id": f"{split}-{i:03d}",
                        "finding": "opacity",
                        "run": f"resnet18-{method}-seed{seed}",
                        "protocol": "home",
                        "backbone": "resnet18",
                        "method": method,
                        "seed": seed,
                        "label_fraction": 1.0,
                        "draw": 0,
                        "adaptation": "none",
                        "patient_id": f"{split}-p{i // 6 * 3 + i % 3}",
                        "site": site,
                        "split": split,
                        "label": int(labels[i]),
                        "logit": logits[i],
                        "probability": expit(logits[i]),
                        **changes,
                    }
                    for i in range(num)
                ]
    return make_table(Predictions, pd.DataFrame(rows))
