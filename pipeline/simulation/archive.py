"""A site's raw archive as a hospital would hand it over (DICOM tree, label file, mishaps), and the truth."""

import csv
import dataclasses
import json
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.simulation.acquisition import burn_marker, encode, expose, opacity_attenuation
from pipeline.simulation.cohort import (
    Hospital,
    Image,
    Patient,
    Study,
    attainable_auroc,
    attainable_auroc_with_marker,
    draw_cohort,
)
from pipeline.simulation.objects import compress, image_object, report_object, to_bytes
from pipeline.simulation.phantom import (
    Anatomy,
    Opacity,
    Plane,
    Pose,
    draw_anatomy,
    draw_opacity,
    draw_pose,
    opacity_centre_px,
    render,
)
from pipeline.simulation.spec import SimulatedSite

ARCHIVE, LABELS, TRUTH, IMAGE_TRUTH = "archive", "labels.csv", "truth.json", "truth.csv"
BAD_KINDS = ("truncated", "not_dicom", "empty", "structured_report", "no_pixel_data", "duplicate")
TRUTH_COLUMNS = (
    "sop_instance_uid",
    "study",
    "label",
    "z",
    "marker",
    "opacity_row_px",
    "opacity_column_px",
    "file",
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that is drawn for one exposure before it is rendered."""

    anatomy: Anatomy
    pose: Pose
    opacity: Opacity


def simulate(hospital: Hospital, out: Path) -> None:
    """Write archive/, labels.csv, truth.json and truth.csv, in place of what an earlier call left.

    Same arguments, same bytes. Nothing depends on other sites.

    Raises:
        PipelineError: ``out`` holds files of someone else.
    """
    _clear(out)
    site, spec = hospital.site, hospital.spec
    patients = draw_cohort(hospital)
    rows = [
        _write_image(out / ARCHIVE, hospital, patient, study, image)
        for patient in tqdm(patients, desc=f"simulate {site}", unit="patient", mininterval=0.5)
        for study in patient.studies
        for image in study.images
    ]
    bad_files = _write_bad_files(out / ARCHIVE, hospital, patients, [row["file"] for row in rows])
    studies = [study for patient in patients for study in patient.studies]
    # Two flaws that label files have: a study without images, and a row given twice.
    orphan = hospital.uid("study without images")
    labels = [(study.study_instance_uid, study.label) for study in studies]
    _write_csv(out / LABELS, ("StudyInstanceUID", "opacity"), [*labels, (orphan, 0), labels[0]])
    _write_csv(out / IMAGE_TRUTH, TRUTH_COLUMNS, [tuple(row.values()) for row in rows])
    truth = {
        "site": site,
        "seed": hospital.seed,
        "d_prime": spec.d_prime,
        "prevalence": spec.prevalence,
        "attainable_auroc": round(attainable_auroc(spec.d_prime), 6),
        "attainable_auroc_with_marker": round(
            attainable_auroc_with_marker(spec.d_prime, spec.marker_positive, spec.marker_negative), 6
        ),
        "num_patients": len(patients),
        "num_studies": len(studies),
        "num_images": len(rows),
        "num_positive_studies": sum(study.label for study in studies),
        "shift": spec.model_dump(exclude={"patients", "prevalence", "d_prime", "bad_share"}),
        "bad_files": bad_files,
        "label_flaws": {"duplicate_row": labels[0][0], "study_without_images": orphan},
    }
    (out / TRUTH).write_text(json.dumps(truth, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def draw_scene(hospital: Hospital, patient: Patient, study: Study, image: Image) -> Scene:
    """Anatomy belongs to the patient, the opacity to the study, the pose to the exposure.

    Each has a stream of its own, so that a site with another detector sees the same people.
    """
    return Scene(
        draw_anatomy(hospital.stream(patient.key, "anatomy")),
        draw_pose(hospital.stream(image.key, "pose"), frontal_beam=study.view_position == "AP"),
        draw_opacity(
            hospital.stream(study.key, "opacity"),
            hospital.spec.radius_mm,
            opacity_attenuation(study.severity, hospital.spec),
        ),
    )


def take_picture(scene: Scene, spec: SimulatedSite, marker: bool, rng: np.random.Generator) -> Plane:
    """The signal of one exposure, (rows, columns) float64 in 0..1, 1 is white; ``rng`` is for the noise."""
    attenuation = render(scene.anatomy, scene.pose, scene.opacity, (spec.rows, spec.columns), spec.pixel_spacing_mm)
    signal = expose(attenuation, spec, rng)
    return burn_marker(signal, spec.pixel_spacing_mm) if marker else signal


def make_object(hospital: Hospital, patient: Patient, study: Study, image: Image) -> Dataset:
    """One exposure, finished but for its transfer syntax."""
    scene = draw_scene(hospital, patient, study, image)
    signal = take_picture(scene, hospital.spec, image.marker, hospital.stream(image.key, "noise"))
    return image_object(hospital, patient, study, image, encode(signal, hospital.spec))


def study_folder(patient: Patient, study: Study) -> Path:
    """As exports name folders: by the patient's name, in plain letters, and by date and accession number."""
    name = unicodedata.normalize("NFKD", f"{patient.family}^{patient.given}").encode("ascii", "ignore").decode()
    return Path(f"{name}_{patient.patient_id}", f"{study.moment:%Y%m%d}_{study.accession_number}")


def _write_image(archive: Path, hospital: Hospital, patient: Patient, study: Study, image: Image) -> dict[str, Any]:
    ds = compress(make_object(hospital, patient, study, image), hospital.spec.transfer_syntax)
    # Every third study comes from a workstation that writes no extensions.
    suffix = "" if int(study.accession_number[-2:]) % 3 == 0 else ".dcm"
    path = study_folder(patient, study) / f"IM{image.number:04d}{suffix}"
    _write(archive / path, to_bytes(ds))
    row, column = _opacity_place(hospital, patient, study, image)
    return {
        "sop_instance_uid": image.sop_instance_uid,
        "study": study.study_instance_uid,
        "label": study.label,
        "z": f"{study.severity:.6f}",
        "marker": int(image.marker),
        "opacity_row_px": f"{row:.1f}",
        "opacity_column_px": f"{column:.1f}",
        "file": path.as_posix(),
    }


def _opacity_place(hospital: Hospital, patient: Patient, study: Study, image: Image) -> tuple[float, float]:
    scene, spec = draw_scene(hospital, patient, study, image), hospital.spec
    shape = (spec.rows, spec.columns)
    return opacity_centre_px(scene.anatomy, scene.pose, scene.opacity, shape, spec.pixel_spacing_mm)


def _write_bad_files(
    archive: Path, hospital: Hospital, patients: Sequence[Patient], good: Sequence[str]
) -> dict[str, list[str]]:
    """Bad files among the good ones; by kind, the paths below the archive."""
    written: dict[str, list[str]] = {kind: [] for kind in BAD_KINDS}
    count = max(round(hospital.spec.bad_share * len(good)), len(BAD_KINDS)) if hospital.spec.bad_share > 0 else 0
    rng = hospital.stream("bad files")
    for index in range(count):
        kind = BAD_KINDS[index % len(BAD_KINDS)]
        patient = patients[int(rng.integers(len(patients)))]
        study = patient.studies[int(rng.integers(len(patient.studies)))]
        original = archive / good[int(rng.integers(len(good)))]
        image = Image(f"{study.key}/bad{index}", 900 + index, hospital.uid(study.key, f"bad{index}"), False)
        content = _bad_content(kind, hospital, patient, study, image, original)
        path = study_folder(patient, study) / f"IM{image.number:04d}.dcm"
        _write(archive / path, content)
        written[kind].append(path.as_posix())
    return written


def _bad_content(kind: str, hospital: Hospital, patient: Patient, study: Study, image: Image, original: Path) -> bytes:
    match kind:
        case "truncated":
            ds = compress(make_object(hospital, patient, study, image), hospital.spec.transfer_syntax)
            # Pixel Data is the last element.
            return to_bytes(ds)[: -len(ds.PixelData) // 2]
        case "not_dicom":
            return f"Export of {patient.family}^{patient.given}, {patient.patient_id}: medium full\n".encode()
        case "empty":
            return b""
        case "structured_report":
            return to_bytes(report_object(hospital, patient, study, image))
        case "no_pixel_data":
            ds = make_object(hospital, patient, study, image)
            del ds.PixelData
            return to_bytes(ds)
        case "duplicate":
            return original.read_bytes()
        case _:
            raise ValueError(f"kind must be one of {BAD_KINDS}, not {kind!r}")


def _clear(out: Path) -> None:
    ours = {ARCHIVE, LABELS, TRUTH, IMAGE_TRUTH}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in ours) if out.is_dir() else []
    if foreign:
        raise PipelineError(
            f"--out must be an empty folder or one that simulate wrote, but {out} holds {len(foreign)} other "
            f"entries, such as {foreign[0]!r}"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
