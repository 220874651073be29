"""What comes of training on one hospital after another."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

STRATEGIES = ("naive", "replay", "joint")
MEASURES = ("final_auroc", "forgetting", "backward_transfer", "forward_transfer")


class ContinualSteps(Table):
    """The trainings: one row a run and step, with the hospital that joins and who is trained on.

    ``run`` is a strategy with one seed. Step 0 is the first hospital alone, one training for all strategies.
    ``num_earlier_patients`` of ``num_train_patients`` belong to hospitals of earlier steps: the replayed ones, or all.
    ``role``: where the hospital is a target, its labelled patients are those of ``target_adapt``. ``val_loss``: of the
    kept epoch, in nats per annotated label, on who selects at this step. ``model_sha256``: over the weights.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "step": pa.int16(),
        "backbone": pa.string(),
        "strategy": pa.string(),
        "seed": pa.int64(),
        "site": pa.string(),
        "role": pa.string(),
        "num_train_images": pa.int64(),
        "num_train_patients": pa.int64(),
        "num_earlier_patients": pa.int64(),
        "num_val_patients": pa.int64(),
        "kept_epoch": pa.int32(),
        "val_loss": pa.float64(),
        "model_sha256": pa.string(),
    }
    key: ClassVar = ("run", "step")
    required: ClassVar = (
        "backbone",
        "strategy",
        "seed",
        "site",
        "role",
        "num_train_images",
        "num_train_patients",
        "num_earlier_patients",
        "num_val_patients",
        "kept_epoch",
        "val_loss",
        "model_sha256",
    )
    vocabulary: ClassVar = {"strategy": frozenset(STRATEGIES), "role": frozenset({"source", "target"})}


class ContinualPredictions(Table):
    """The logits of every test image after every step; no label stands beside them."""

    columns: ClassVar = {
        "run": pa.string(),
        "step": pa.int16(),
        "finding": pa.string(),
        "image_id": pa.string(),
        "patient_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
        "logit": pa.float64(),
    }
    key: ClassVar = ("run", "step", "finding", "image_id")
    required: ClassVar = ("patient_id", "site", "split", "logit")
    vocabulary: ClassVar = {"split": frozenset({"id_test", "ood_test"})}


class ContinualScores(Table):
    """AUROC on a hospital's test patients after a step, of single trainings and of a strategy over its seeds.

    ``run`` is ``BACKBONE-STRATEGY`` or, of a single training (``num_runs`` 1, ``seed`` not null), with ``-seedN``
    behind. The interval of a single training counts patients alone, that of a strategy patients and seeds.
    ``joins_at``: the step at which the hospital is learnt; before that it is one the model has never seen. Null where
    it is undefined (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "step": pa.int16(),
        "site": pa.string(),
        "backbone": pa.string(),
        "strategy": pa.string(),
        "seed": pa.int64(),
        "joins_at": pa.int16(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "num_runs": pa.int64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "step", "site")
    required: ClassVar = ("backbone", "strategy", "joins_at", "num_runs", "num_images", "num_patients", "note")
    vocabulary: ClassVar = {"strategy": frozenset(STRATEGIES)}


class ContinualMeasures(Table):
    """What a strategy lost and gained over the whole sequence: at one hospital, and (``site`` "") the mean over them.

    With R[i, j] the AUROC on hospital j after step i, k the last step, taken for each seed and then averaged:

    ``final_auroc``: R[k, j]. ``forgetting``: max of R[i, j] over i < k, less R[k, j], for j < k (Chaudhry et al. 2018);
    the maximum of noisy values lies above that of the true ones, which is not corrected. ``backward_transfer``: R[k, j]
    less R[j, j], for j < k. ``forward_transfer``: R[j-1, j] less 0.5, for j > 0 (both Lopez-Paz and Ranzato 2017).

    ``difference`` is from naive training, seed by seed on the same patients; null for naive itself. Null where it is
    undefined (``note``).
    """

    columns: ClassVar = {
        "run": pa.string(),
        "finding": pa.string(),
        "measure": pa.string(),
        "site": pa.string(),
        "backbone": pa.string(),
        "strategy": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "difference": pa.float64(),
        "difference_low": pa.float64(),
        "difference_high": pa.float64(),
        "num_runs": pa.int64(),
        "num_sites": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "finding", "measure", "site")
    required: ClassVar = ("backbone", "strategy", "num_runs", "num_sites", "num_patients", "note")
    vocabulary: ClassVar = {"measure": frozenset(MEASURES), "strategy": frozenset(STRATEGIES)}
