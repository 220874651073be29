"""A backbone's embeddings of all images, as ``embed`` leaves them in a folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import PipelineError
from pipeline.tables.contract import plain_text, read_table
from pipeline.tables.diagnosis import Embedded


@dataclass(frozen=True)
class Features:
    """A backbone's embeddings ``array`` (N, D), and ``tables.diagnosis.Embedded`` in the order of its rows."""

    index: pd.DataFrame
    array: npt.NDArray[np.float32]


def read_features(folder: Path) -> Features:
    """A backbone's embeddings, mapped.

    Raises:
        PipelineError: they are not there, or do not belong together.
    """
    index = plain_text(read_table(Embedded, folder / "index.parquet")).sort_values("row", ignore_index=True)
    try:
        array = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        raise PipelineError(f"{folder}/features.npy is missing or damaged; `dvc repro` makes it") from None
    if array.ndim != 2 or not np.array_equal(index["row"].to_numpy(np.int64), np.arange(len(array))):
        raise PipelineError(f"{folder}: features.npy and index.parquet differ in their rows; `dvc repro` makes both")
    return Features(index, array)
