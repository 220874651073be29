"""The annotated test images of one hospital for one finding: what an AUROC is of, and why there may be none."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd


@dataclass(frozen=True)
class Tested:
    """n images by image_id: labels (n,) 0 or 1, patients (n,) as rows of the resample counts."""

    image_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int8]
    patients: npt.NDArray[np.int64]
    num_unlabelled: int

    @property
    def num_patients(self) -> int:
        """All of them."""
        return len(np.unique(self.patients))

    @property
    def limiting(self) -> int:
        """Patients of the rarer class."""
        return min(len(np.unique(self.patients[self.labels == label])) for label in (0, 1))

    @property
    def undefined(self) -> str:
        """Why there is no AUROC, "" where there is one."""
        positives = int(self.labels.sum())
        if not len(self.labels):
            return "no annotated images"
        return f"one class only (positives: {positives})" if positives in (0, len(self.labels)) else ""

    @property
    def note(self) -> str:
        """What is to be said of the images."""
        left_out = f"{self.num_unlabelled} images without label left out" if self.num_unlabelled else ""
        return "; ".join(text for text in (self.undefined, left_out) if text)


def tested_images(rows: pd.DataFrame, known: pd.Series, finding: str) -> Tested:
    """Of predictions of one finding and hospital, by however many models.

    Args:
        rows: image_id and code (of the patient).
        known: labels that are not null, by finding and image_id.
        finding: its name.
    """
    images = rows.drop_duplicates("image_id").sort_values("image_id")
    wanted = pd.MultiIndex.from_arrays([[finding] * len(images), images["image_id"].astype(object)])
    labels = known.reindex(wanted).to_numpy(np.float64, na_value=np.nan)
    there = np.isfinite(labels)
    return Tested(
        images["image_id"].to_numpy(np.str_)[there],
        labels[there].astype(np.int8),
        images["code"].to_numpy(np.int64)[there],
        int((~there).sum()),
    )
