"""Three small sites as the stages before ``diagnose`` and ``controls`` leave them."""

import numpy as np
import tiny

from pipeline.imaging.store import INDEX_FILE, PlaneFormat, write_store
from pipeline.tables.contract import write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.files import Instances, Manifest
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions

SITES = {
    "home": ("train", "id_val", "id_test"),
    "away": ("target_adapt", "ood_test"),
    "poor": ("target_adapt", "ood_test"),
}


def build(tmp_path):
    """As the stages before leave it; ``away`` has another scanner, ``poor`` three patients and no labels."""
    rng = np.random.default_rng(0)
    splits, predictions, embedded, features = [], [], [], []
    for site, parts in SITES.items():
        names = [f"{site}-{part}-{index}" for part in parts for index in range(3 if site == "poor" else 24)]
        labels = np.arange(len(names)) % 2
        write_store(tiny.images(labels), np.arange(len(names))[:, None], PlaneFormat(32, 8), tmp_path / "images" / site)
        placed = [
            {"image_id": name, "array_index": index, "voi": "none", "inverted": False, "pixels_sha256": "0"}
            for index, name in enumerate(names)
        ]
        write_table(Images, placed, tmp_path / "images" / site / INDEX_FILE)
        known = [None if site == "poor" else int(label) for label in labels]
        rows = [{"image_id": name, "finding": "opacity", "label": y} for name, y in zip(names, known, strict=True)]
        write_table(Labels, rows, tmp_path / "labels" / site / "labels.parquet")
        common = {"site": site, "frame": 0, "rows": 32, "columns": 32, "source_hmac": "h"}
        instances = [
            {"image_id": n, "source_id": f"s-{n}", "patient_id": f"p-{n}", "study_id": n, **common} for n in names
        ]
        write_table(Instances, instances, tmp_path / "ingest" / site / "instances.parquet")
        sizes = [{"source_id": f"s-{n}", "size_bytes": 1000 + 500 * int(y)} for n, y in zip(names, labels, strict=True)]
        write_table(Manifest, sizes, tmp_path / "manifests" / f"{site}.parquet")
        for name, label, y in zip(names, labels, known, strict=True):
            part = name.split("-")[1]
            place = {"image_id": name, "patient_id": f"p-{name}", "site": site, "split": part}
            role = "source" if site == "home" else "target"
            splits.append({**place, "study_id": name, "role": role})
            embedded.append({**place, "row": len(features)})
            features.append(rng.normal(size=5) + np.array([2 * label, 3 * (site == "away"), 0, 0, 0]))
            for seed in (1, 2):
                if part != "train":
                    logit = float(2 * label - 1 + 2 * rng.normal())
                    run = {"run": f"net-probe-seed{seed}", "backbone": "net", "method": "probe", "seed": seed}
                    shown = None if part == "target_adapt" else y
                    values = {"label": shown, "logit": logit, "probability": 0.5, "label_fraction": 1.0}
                    predictions.append({**place, "study_id": name, "finding": "opacity", **run, **values})
    write_table(Splits, splits, tmp_path / "split/splits.parquet")
    write_table(Predictions, predictions, tmp_path / "predict/predictions.parquet")
    write_table(Embedded, embedded, tmp_path / "embed/net/index.parquet")
    np.save(tmp_path / "embed/net/features.npy", np.array(features, dtype=np.float32))
    return tmp_path
