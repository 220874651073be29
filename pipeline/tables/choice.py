"""What may help to choose a backbone and a method, and how far it could be trusted; nothing is chosen by it."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

SCORES = ("h_score", "log_me", "leep")  # analysis/transferability.py


class TransferScores(Table):
    """Transferability of a frozen backbone to a finding, on the source's training images; higher is better.

    ``num_images`` are those with a label. ``value`` is null where it is undefined, and ``note`` says why.
    """

    columns: ClassVar = {
        "backbone": pa.string(),
        "finding": pa.string(),
        "score": pa.string(),
        "value": pa.float64(),
        "num_images": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("backbone", "finding", "score")
    required: ClassVar = ("num_images", "note")
    vocabulary: ClassVar = {"score": frozenset(SCORES)}


class RankCorrelations(Table):
    """How a score ranks the backbones against the AUROC that a method with all labels gave each of them.

    ``num_backbones`` have both values. The correlations are null where they are undefined, and ``note`` says why.
    """

    columns: ClassVar = {
        "finding": pa.string(),
        "score": pa.string(),
        "method": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "weighted_tau": pa.float64(),
        "spearman": pa.float64(),
        "num_backbones": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "score", "method", "split", "group")
    required: ClassVar = ("num_backbones", "note")
    vocabulary: ClassVar = {"score": frozenset(SCORES)}


class SearchRungs(Table):
    """Successive halving over backbone and method: one row a rung and candidate.

    ``epochs`` of the rung, 0 where the method has none and its one fit counts in every rung.
    ``id_val_loss`` is in nats per annotated label, null where the candidate could not be trained (``note``). ``kept``:
    it went on to the next rung; in the last rung, it won.
    """

    columns: ClassVar = {
        "rung": pa.int32(),
        "epochs": pa.int32(),
        "backbone": pa.string(),
        "method": pa.string(),
        "id_val_loss": pa.float64(),
        "kept": pa.bool_(),
        "note": pa.string(),
    }
    key: ClassVar = ("rung", "backbone", "method")
    required: ClassVar = ("epochs", "kept", "note")


class SearchOutcome(Table):
    """Where the search's winner stands among the full runs of its candidates, by a metric at one place.

    ``value`` is the winner's mean over findings, ``best_value`` the best of the ``num_families`` (backbones and
    methods with all labels) that have one; ``rank`` counts from 1, ``regret`` is the difference of the two, at least 0.
    Null where the winner has no value, or there is none (``note``).
    """

    columns: ClassVar = {
        "split": pa.string(),
        "group": pa.string(),
        "metric": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "value": pa.float64(),
        "rank": pa.int64(),
        "num_families": pa.int64(),
        "best_backbone": pa.string(),
        "best_method": pa.string(),
        "best_value": pa.float64(),
        "regret": pa.float64(),
        "note": pa.string(),
    }
    key: ClassVar = ("split", "group", "metric")
    required: ClassVar = ("num_families", "note")
