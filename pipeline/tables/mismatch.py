"""How far targets lie from the source, per backbone and method."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table


class Mismatch(Table):
    """The ``Distances`` of a backbone's and method's runs to one target site.

    ``mmd2`` and ``home_mmd2`` are means over the runs, ``p_value`` is the runs' median; null where a run has none
    (``note``). ``num_images`` and ``num_patients`` are the site's.
    """

    columns: ClassVar = {
        "run": pa.string(),
        "site": pa.string(),
        "mmd2": pa.float64(),
        "home_mmd2": pa.float64(),
        "p_value": pa.float64(),
        "num_runs": pa.int64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("run", "site")
    required: ClassVar = ("num_runs", "num_images", "num_patients")
