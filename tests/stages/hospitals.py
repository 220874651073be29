"""Hospitals made by hand whose images mean different things, as the stages before leave them."""

import hashlib

import numpy as np

from pipeline.imaging.store import INDEX_FILE, PlaneFormat, write_store
from pipeline.key import PUBLIC_KEY, fingerprint
from pipeline.ledger import write_ledger
from pipeline.tables.contract import make_table, read_table, write_table
from pipeline.tables.images import Images, Ledger, Splits
from pipeline.tables.labels import Labels

KEY = fingerprint(PUBLIC_KEY)
PRIVACY = {"key": "public", "key_fingerprint": KEY}
# How much brighter the left and the right half are, without and with the finding. The first pair of hospitals
# contradicts itself on the left, and one model can still rank both: left plus right.
NORTH = ((0, 0), (120, 0))
SOUTH = ((60, 0), (0, 120))
SIDES = {"train": 24, "val": 8, "test": 24}


def name_of(*parts):
    """A pseudonym."""
    return hashlib.md5("-".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def pixels(look, truth, seed, size_px=32):
    """(N, H, W) uint8: noise, with halves as bright as ``look`` says of each label."""
    made = np.random.default_rng(seed).integers(0, 100, (len(truth), size_px, size_px))
    for image, label in zip(made, truth, strict=True):
        image[:, : size_px // 2] += look[label][0]
        image[:, size_px // 2 :] += look[label][1]
    return made.astype(np.uint8)


def write_hospitals(root, looks, source=("north",), sides=None, finding="opacity"):
    """split, splits.csv, images and labels; a patient an image, every other one with the finding.

    Args:
        root: folder.
        looks: by site, as NORTH.
        source: names; the others are targets.
        sides: patients on each side.
        finding: name.
    """
    splits, ledger = [], []
    for number, (site, look) in enumerate(looks.items()):
        given = [(side, index) for side, count in (sides or SIDES).items() for index in range(count)]
        images = [name_of(site, "image", *one) for one in given]
        patients = [name_of(site, "patient", *one) for one in given]
        truth = [index % 2 for _, index in given]
        # Neither by name nor by side.
        order = np.random.default_rng(number).permutation(len(given))
        write_store(
            pixels(look, [truth[i] for i in order], seed=number), np.arange(len(given))[:, None], PlaneFormat(32, 8),
            root / "images" / site,
        )  # fmt: skip
        index = [
            {"image_id": images[i], "array_index": place, "voi": "none", "inverted": False, "pixels_sha256": "00"}
            for place, i in enumerate(order)
        ]
        write_table(Images, index, root / "images" / site / INDEX_FILE)
        labels = [{"image_id": n, "finding": finding, "label": y} for n, y in zip(images, truth, strict=True)]
        write_table(Labels, labels, root / "labels" / site / "labels.parquet")
        role = "source" if site in source else "target"
        names = {"train": "train", "val": "id_val", "test": "id_test"}
        if role == "target":
            names = {"train": "target_adapt", "val": "target_adapt", "test": "ood_test"}
        for (side, _), image, patient in zip(given, images, patients, strict=True):
            row = {"image_id": image, "patient_id": patient, "study_id": image, "site": site, "role": role}
            splits.append({**row, "split": names[side]})
            ledger.append({"patient_id": patient, "site": site, "stratum": "(any)", "side": side})
    write_table(Splits, splits, root / "split" / "splits.parquet")
    write_ledger(root / "splits.csv", KEY, make_table(Ledger, ledger))
    return root


def relabel(root, sites, sides, change):
    """Apply ``change`` to the labels of these sides' patients."""
    for site in sites:
        path = root / "labels" / site / "labels.parquet"
        known = [name_of(site, "image", side, index) for side in sides for index in range(1000)]
        frame = read_table(Labels, path)
        here = frame["image_id"].isin(known)
        frame.loc[here, "label"] = change(frame.loc[here, "label"])
        write_table(Labels, frame, path)
