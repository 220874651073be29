"""The patient-cluster bootstrap of AUROC beside a loop over scikit-learn, and the memory of a million predictions.

Run it on a quiet machine: `pytest tests/benchmarks/test_bootstrap.py -n 0 -m slow -s`. One thread.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from benchmarks.measure import ROOT
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from pipeline.metrics.intervals import patient_counts
from pipeline.metrics.resampled import resampled_auroc
from pipeline.tables.contract import make_table
from pipeline.tables.predictions import Predictions

pytestmark = pytest.mark.slow

IMAGES, PATIENTS, RESAMPLES = 100_000, 33_000, 2000


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("prevalence", [0.1, 0.4])
def test_auroc_beside_a_loop_over_scikit_learn(prevalence: float):
    """The same counts for both. The loop is timed on a few resamples at a time, in turn with all of ours."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, PATIENTS, IMAGES)
    labels = (rng.random(PATIENTS) < prevalence)[codes].astype(np.int8)
    logits = rng.normal(size=IMAGES) + 1.2 * labels
    counts = patient_counts([str(patient) for patient in range(PATIENTS)], RESAMPLES, seed=1)

    def loop(some: range) -> list[float]:
        return [roc_auc_score(labels, logits, sample_weight=counts[codes, one].astype(float)) for one in some]

    with threadpool_limits(1):
        made = resampled_auroc(labels, logits, counts, codes)
        assert np.abs(made[:20] - loop(range(20))).max() < 1e-12
        ratios = []
        for turn in range(7):
            peer = seconds(lambda turn=turn: loop(range(10 * turn, 10 * turn + 10))) * RESAMPLES / 10
            ratios.append(peer / seconds(lambda: resampled_auroc(labels, logits, counts, codes)))
    ratio, span = statistics.median(ratios), f"{min(ratios):.0f} to {max(ratios):.0f}"
    print(f"\nprevalence {prevalence}: loop over roc_auc_score / resampled_auroc = {ratio:.0f} ({span})")
    assert ratio >= 100


EVALUATE = """
import resource, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from benchmarks.test_bootstrap import million
from pipeline.analysis.evaluation import EvaluateParams, evaluate
predictions = million({runs})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
made = evaluate(predictions, EvaluateParams(seed=1, resamples={resamples}), ["home"], ["west", "south"])
print(len(made.metrics), before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - start)
"""


def million(runs: int):
    """Predictions of ``runs`` runs on 100,000 images of 33,000 patients, a half of them tested elsewhere."""
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(0, PATIENTS, IMAGES))
    labels = (rng.random(PATIENTS) < 0.2)[codes].astype(np.int8)
    split = np.array(["id_val", "id_test", "ood_test", "ood_test"])[codes % 4]
    site = np.array(["home", "home", "west", "south"])[codes % 4]
    images = pd.DataFrame(
        {
            "image_id": [f"i{index:06d}" for index in range(IMAGES)],
            "finding": "effusion", "protocol": "home", "backbone": "resnet", "label_fraction": 1.0, "draw": 0,
            "adaptation": "none", "patient_id": [f"p{code}" for code in codes], "site": site, "split": split,
            "label": labels,
        }
    )  # fmt: skip
    frames = []
    for run in range(runs):
        method = ("scratch", "full")[run % 2]
        logits = rng.normal(size=IMAGES) + labels - 1.0
        frames.append(
            images.assign(
                run=f"resnet-{method}-seed{run}", method=method, seed=run, logit=logits, probability=expit(logits)
            )
        )
    return make_table(Predictions, pd.concat(frames, ignore_index=True))


def test_memory_of_a_million_predictions():
    """In a process of its own, with few resamples: more take time, and memory only for counts and draws (1 byte a
    patient, 8 a run, group and metric, each times the resamples: 66 and 20 MB for 2,000 here).
    """
    peaks = {}
    for runs in (2, 10):
        code = EVALUATE.format(root=str(ROOT), tests=str(ROOT / "tests"), runs=runs, resamples=100)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        rows, before, peak, taken = map(float, done.stdout.split())
        peaks[runs], first = peak / 1024, before / 1024
        print(
            f"\n{runs * IMAGES} predictions: {rows:.0f} rows, {taken:.0f} s; "
            f"peak {peaks[runs]:.0f} MiB, {first:.0f} before"
        )
    assert peaks[10] < 4096
