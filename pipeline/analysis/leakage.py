"""The leakage check: what stands on two sides of a split, counted."""

from collections.abc import Iterable, Mapping

import pandas as pd

from pipeline.analysis.duplicates import connected
from pipeline.params import ParamsError
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table
from pipeline.tables.images import Leakage


def leakage(
    splits: pd.DataFrame,
    instances: pd.DataFrame,
    images: pd.DataFrame,
    duplicates: pd.DataFrame,
    overlaps: Iterable[tuple[str, str, str]],
    params: SplitParams,
) -> pd.DataFrame:
    """Counts as ``tables.images.Leakage``.

    Args:
        splits: as ``tables.images.Splits``.
        instances: image_id, patient_id, site, source_hmac; of unused images too.
        images: image_id, sha256 of the preprocessed pixels.
        duplicates: image_id, duplicate_of, same_patient.
        overlaps: of ``overlapping_origins``.
        params: section ``split``.
    """
    known = splits.merge(instances[["image_id", "source_hmac"]], on="image_id").merge(
        images[["image_id", "pixels_sha256"]], on="image_id"
    )
    same_pixels = known.groupby("pixels_sha256")
    splits_of_pixels, copies = same_pixels["split"].transform("nunique"), same_pixels["image_id"].transform("size")
    within = (splits_of_pixels == 1) & (copies > 1)
    pairs = duplicates[duplicates[["image_id", "duplicate_of"]].isin(set(known["image_id"])).all(axis=1)]
    known["picture"] = known["image_id"].map(connected(pairs["image_id"], pairs["duplicate_of"]))
    roles = instances.assign(role=instances["site"].isin(params.source))
    named = [f"{source} and {target} ({origin})" for source, target, origin in overlaps]
    checks = [
        (
            "patients_in_two_splits",
            "patients with images in more than one split",
            _shared(known, "patient_id"),
            True,
        ),
        (
            "studies_in_two_splits",
            "studies with images in more than one split",
            _shared(known, "study_id"),
            True,
        ),
        (
            "files_in_two_splits",
            "byte-identical files in more than one split",
            _shared(known, "source_hmac"),
            True,
        ),
        (
            "pixels_in_two_splits",
            "different images with identical pixels in more than one split",
            _shared(known, "pixels_sha256"),
            True,
        ),
        (
            "near_duplicates_in_two_splits",
            "groups of near-duplicate images in more than one split",
            _shared(known, "picture"),
            True,
        ),
        (
            "near_duplicates_across_patients",
            "pairs of near-duplicate images of two patients, of used and unused images",
            int((~duplicates["same_patient"]).sum()),
            False,
        ),
        (
            "near_duplicates_within_patient",
            "pairs of near-duplicate images of one patient, of used and unused images",
            int(duplicates["same_patient"].sum()),
            False,
        ),
        (
            "pixels_repeated_within_split",
            "groups of images with identical pixels inside one split (they count more than once)",
            int(known.loc[within, "pixels_sha256"].nunique()),
            False,
        ),
        (
            "patients_at_two_sites",
            "patients with images at more than one site, kept on one side",
            _shared(known, "patient_id", "site"),
            False,
        ),
        (
            "patients_in_both_roles",
            "patients with images at a source and at a target site, of whom the source's alone are used",
            _shared(roles, "patient_id", "role"),
            False,
        ),
        (
            "overlapping_origins",
            "; ".join(["pairs of a source and a target site of one image collection, never external", *named]),
            len(named),
            False,
        ),
    ]
    names = ("check", "description", "count", "must_be_zero")
    return make_table(Leakage, [dict(zip(names, check, strict=True)) for check in checks])


def overlapping_origins(
    terms: pd.DataFrame, issuers: Mapping[str, str], params: SplitParams
) -> list[tuple[str, str, str]]:
    """The pairs of a source and a target site whose images come from one collection: (source, target, origin).

    RSNA Pneumonia and SIIM-ACR annotate images of ChestX-ray14 again: a model trained on one has seen the other's
    patients. Only where both sites have one issuer are patients known again and left out.

    Args:
        terms: site, origin; "" overlaps with nothing.
        issuers: who gave out the patient numbers, by site.
        params: section ``split``.

    Raises:
        ParamsError: a pair without a common issuer.
    """
    origins = dict(zip(terms["site"], terms["origin"], strict=True))
    overlaps = [
        (source, target, origins[source])
        for source in params.source
        for target in params.target
        if origins[source] and origins[source] == origins[target]
    ]
    for source, target, origin in overlaps:
        if issuers[source] != issuers[target]:
            raise ParamsError(
                f"split: the images of source site '{source}' and of target site '{target}' come from one collection "
                f"({origin}), so the target is not external, and its patients may be the source's. Take one of them "
                f"out; or, where their patient numbers are the same, write the same sites.{source}.issuer and "
                f"sites.{target}.issuer: then a patient of both is left out of the target (got '{issuers[source]}' "
                f"and '{issuers[target]}')"
            )
    return overlaps


def _shared(known: pd.DataFrame, column: str, over: str = "split") -> int:
    """How many values of ``column`` occur with more than one value of ``over``."""
    return int((known.groupby(column)[over].nunique() >= 2).sum())
