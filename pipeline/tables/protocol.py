"""What the study declared, and each opening of its test labels."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


class Openings(Table):
    """The lines of ``openings.csv`` in order (``protocol.py``): opening 0 is a seal; hashes may be ""."""

    columns: ClassVar = {
        "entry": pa.int32(),
        "opening": pa.int32(),
        "protocol_sha256": pa.string(),
        "params_sha256": pa.string(),
        "splits_sha256": pa.string(),
        "reason": pa.string(),
    }
    key: ClassVar = ("entry",)
    required: ClassVar = ("opening", "protocol_sha256", "params_sha256", "splits_sha256", "reason")


class Protocols(Table):
    """One row: the study's protocol, and in words when it was sealed and how often the test labels were opened.

    run, finding, split, group and against find its row in ``Verdicts``. All but ``statement`` is null where no protocol
    was declared; ``sample_size``, in patients, also where none was planned.
    """

    columns: ClassVar = {
        "statement": pa.string(),
        "hypothesis": pa.string(),
        "metric": pa.string(),
        "finding": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "run": pa.string(),
        "against": pa.string(),
        "margin": pa.float64(),
        "sample_size": pa.int64(),
    }
    key: ClassVar = ("statement",)
