"""The labelled patients of several hospitals as one set of training data, whichever of them are source or target.

Who trains and who selects: at a source the sides of ``split``. A target's ``target_adapt`` patients have their side
(train or val) in the ledger, so that each stands where they would stand if their hospital were a source. To train on
them spends labels that the rest of the study does not look at. Nobody of ``id_test`` or ``ood_test`` is read here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import PipelineError
from pipeline.imaging.intensity import Grey
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, read_tables
from pipeline.tables.images import Images as ImagesTable
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.training.feed import Dataset, Floats, Images, Indices

TEST_SPLITS = ("id_test", "ood_test")


@dataclass(frozen=True)
class Together:
    """Images of several stores in one order: image i is ``places[i]`` of store ``store_of[i]``."""

    stores: Sequence[Images]
    store_of: Indices
    places: Indices

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns)."""
        _, channels, rows, columns = self.stores[0].shape
        return len(self.places), channels, rows, columns

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: Indices) -> Grey:
        """(B, C, H, W)."""
        parts = [(at, np.flatnonzero(self.store_of[indices] == at)) for at in np.unique(self.store_of[indices])]
        read = [(here, self.stores[at].read(self.places[indices[here]])) for at, here in parts]
        pixels: Grey = np.empty((len(indices), *self.shape[1:]), read[0][1].dtype)
        for here, part in read:
            pixels[here] = part
        return pixels


@dataclass(frozen=True)
class Labelled:
    """All patients of some hospitals that may train or select, in the order of the hospitals.

    Attributes:
        images: N images.
        image_ids: (N,) pseudonyms.
        patients: (N,) pseudonyms.
        sites: (N,) names.
        sides: (N,) "train" or "val".
        labels: (N, findings) 0, 1 or NaN.
        findings: names of the columns.
    """

    images: Images
    image_ids: npt.NDArray[np.str_]
    patients: npt.NDArray[np.str_]
    sites: npt.NDArray[np.str_]
    sides: npt.NDArray[np.str_]
    labels: Floats
    findings: list[str]

    def where(self, side: str, sites: Collection[str]) -> Indices:
        """The images of one side of these hospitals."""
        return np.flatnonzero((self.sides == side) & np.isin(self.sites, list(sites)))

    def dataset(self, train: Indices, val: Indices) -> Dataset:
        """To train on some images and select on others."""
        return Dataset(self.images, self.labels, self.patients, train, train, val, self.image_ids)


def sides_of(splits: pd.DataFrame, ledger: pd.DataFrame, params: SplitParams, sites: Collection[str]) -> pd.DataFrame:
    """The rows of ``splits`` of these sites that may train or select, with their ``side``.

    Args:
        splits: as ``tables.images.Splits``.
        ledger: as ``tables.images.Ledger``.
        params: section ``split``.
        sites: names.

    Raises:
        PipelineError: a patient of a target has no such side in the ledger.
    """
    own = splits[splits["site"].isin(sites) & splits["split"].isin(["train", "id_val", "target_adapt"])]
    given = own["patient_id"].map(ledger.set_index("patient_id")["side"])
    side = own["split"].map({"train": "train", "id_val": "val"}).where(own["site"].isin(params.source), given)
    if lacking := int((~side.isin(["train", "val"])).sum()):
        raise PipelineError(
            f"splits.csv gives the patients of {lacking} images of target_adapt no side that trains or selects; take "
            "the file from git again, or run `dvc repro split`"
        )
    return own.assign(side=side)


def read_labelled(
    split: Path, ledger: pd.DataFrame, images: Path, labels: Path, params: SplitParams, sites: Sequence[str]
) -> Labelled:
    """What training may see of these sites; labels of other images are let go at once.

    Args:
        split: the folder of split.
        ledger: as ``tables.images.Ledger``.
        images: the folder of all sites' preprocess.
        labels: the folder of all sites' labels.
        params: section ``split``.
        sites: in the order wanted: a site that is added at the end leaves the others' images where they are.

    Raises:
        PipelineError: the sites' arrays differ in format.
    """
    rows = sides_of(plain_text(read_table(Splits, split / "splits.parquet")), plain_text(ledger), params, sites)
    stores = [Store(images / site) for site in sites]
    formats = {(store.format, store.shape[1]) for store in stores}
    if len(formats) > 1:
        raise PipelineError(f"the sites' arrays differ in format: {sorted(map(str, formats))}; run `dvc repro`")
    parts = []
    for number, site in enumerate(sites):
        index = plain_text(read_table(ImagesTable, images / site / INDEX_FILE)[["image_id", "array_index"]])
        own = rows[rows["site"] == site].merge(index, on="image_id").sort_values("array_index")
        parts.append(own.assign(store=number))
    together = pd.concat(parts, ignore_index=True)
    known = plain_text(read_tables(Labels, [labels / site / "labels.parquet" for site in sites]))
    known = known[known["image_id"].isin(together["image_id"])]
    wide = known.set_index(["image_id", "finding"])["label"].unstack().reindex(together["image_id"])  # noqa: PD010 - a key is unique; nothing to aggregate
    return Labelled(
        Together(stores, together["store"].to_numpy(np.int64), together["array_index"].to_numpy(np.int64)),
        together["image_id"].to_numpy(np.str_),
        together["patient_id"].to_numpy(np.str_),
        together["site"].to_numpy(np.str_),
        together["side"].to_numpy(np.str_),
        wide.astype("Float32").to_numpy(np.float32, na_value=np.nan),
        [str(finding) for finding in wide.columns],
    )


def read_tested(split: Path, images: Path, sites: Sequence[str]) -> pd.DataFrame:
    """Test images of these sites: image_id, patient_id, site, split, array_index; no label is read."""
    splits = plain_text(read_table(Splits, split / "splits.parquet"))
    rows = splits.loc[splits["split"].isin(TEST_SPLITS), ["image_id", "patient_id", "site", "split"]]
    parts = []
    for site in sites:
        index = plain_text(read_table(ImagesTable, images / site / INDEX_FILE)[["image_id", "array_index"]])
        parts.append(rows[rows["site"] == site].merge(index, on="image_id").sort_values("array_index"))
    return pd.concat(parts, ignore_index=True)
