"""What the baseline without pixels was fitted on."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


class BaselineColumns(Table):
    """Which columns of ``Instances`` a finding's baseline uses; ``note`` says why not, null where it does."""

    columns: ClassVar = {"finding": pa.string(), "column": pa.string(), "used": pa.bool_(), "note": pa.string()}
    key: ClassVar = ("finding", "column")
    required: ClassVar = ("used",)
