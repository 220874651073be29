"""The disease model keeps its promises: separation, prevalence, correlation, and what the image shows of it."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pipeline.simulation.acquisition import opacity_attenuation
from pipeline.simulation.archive import draw_scene, take_picture
from pipeline.simulation.cohort import (
    PERSISTENCE,
    Hospital,
    attainable_auroc,
    attainable_auroc_with_marker,
    draw_cohort,
)
from pipeline.simulation.phantom import opacity_centre_px
from pipeline.simulation.spec import SimulatedSite


@pytest.fixture(scope="module")
def patients():
    spec = SimulatedSite(patients=3000, prevalence=0.3, d_prime=2.4, marker_positive=0.8, marker_negative=0.1)
    return draw_cohort(Hospital("north", spec, seed=11))


def studies_of(patients):
    return [study for patient in patients for study in patient.studies]


def test_latent_reaches_the_attainable_auroc(patients):
    d_prime, studies = 2.4, studies_of(patients)
    labels = np.array([study.label for study in studies])
    z = np.array([study.severity for study in studies])
    target = norm.cdf(d_prime / math.sqrt(2))
    assert attainable_auroc(d_prime) == pytest.approx(target)
    # Hanley and McNeil 1982, for the standard error; severities are independent given the labels.
    num_positive, num_negative = labels.sum(), (1 - labels).sum()
    q1, q2 = target / (2 - target), 2 * target**2 / (1 + target)
    variance = target * (1 - target) + (num_positive - 1) * (q1 - target**2) + (num_negative - 1) * (q2 - target**2)
    error = math.sqrt(variance / (num_positive * num_negative))
    assert abs(roc_auc_score(labels, z) - target) < 4 * error


def test_marker_raises_what_a_reader_can_reach(patients):
    assert attainable_auroc_with_marker(2.4, 0.3, 0.3) == pytest.approx(attainable_auroc(2.4))
    assert attainable_auroc_with_marker(2.4, 0.0, 0.0) == pytest.approx(attainable_auroc(2.4))
    assert attainable_auroc_with_marker(2.4, 1.0, 0.0) == pytest.approx(1.0)
    studies = studies_of(patients)
    labels = [study.label for study in studies]
    evidence = {True: math.log(0.8 / 0.1), False: math.log(0.2 / 0.9)}
    score = [2.4 * study.severity + evidence[study.images[0].marker] for study in studies]
    expected = attainable_auroc_with_marker(2.4, 0.8, 0.1)
    assert expected > attainable_auroc(2.4) + 0.02
    assert roc_auc_score(labels, score) == pytest.approx(expected, abs=0.008)


def test_prevalence_and_correlation_within_patients(patients):
    labels = [study.label for patient in patients for study in patient.studies]
    assert np.mean(labels) == pytest.approx(0.3, abs=0.03)
    pairs = np.array([[s.label for s in patient.studies[:2]] for patient in patients if len(patient.studies) > 1])
    assert 0.25 < len(pairs) / len(patients) < 0.35
    assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(PERSISTENCE**2, abs=0.08)
    assert all(len({s.moment.date() for s in p.studies}) == len(p.studies) for p in patients)
    assert len({patient.patient_id for patient in patients}) == len(patients)


def test_denser_opacity_for_a_higher_latent():
    spec = SimulatedSite(prevalence=0.4, contrast=0.5)
    density = [opacity_attenuation(z, spec) for z in np.linspace(-4, 8, 50)]
    assert np.all(np.diff(density) > 0)
    assert opacity_attenuation(-1.0, spec) < 0.02 * spec.contrast
    assert density[-1] <= spec.contrast


def test_opacity_is_seen_in_the_image():
    hospital = Hospital("north", SimulatedSite(patients=60, prevalence=0.5), seed=2)
    spec = hospital.spec
    contrast, labels = [], []
    for patient in draw_cohort(hospital):
        study = patient.studies[0]
        scene = draw_scene(hospital, patient, study, study.images[0])
        picture = take_picture(scene, spec, marker=False, rng=hospital.stream(study.key, "test"))
        shape = picture.shape
        row, column = opacity_centre_px(scene.anatomy, scene.pose, scene.opacity, shape, spec.pixel_spacing_mm)
        mirrored = 2 * (scene.pose.shift_x / spec.pixel_spacing_mm + (shape[1] - 1) / 2) - column
        contrast.append(disc_mean(picture, row, column) - disc_mean(picture, row, mirrored))
        labels.append(study.label)
    assert roc_auc_score(labels, contrast) > 0.8


def disc_mean(picture, row, column, radius=6):
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    return picture[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2].mean()


def test_a_patient_looks_like_himself():
    hospital = Hospital("north", SimulatedSite(patients=60, prevalence=0.5, contrast=0.01, noise=0.0), seed=2)
    first, same, other = [], [], []
    for patient in [p for p in draw_cohort(hospital) if len(p.studies) > 1][:10]:
        scenes = [draw_scene(hospital, patient, study, study.images[0]) for study in patient.studies[:2]]
        first.append(scenes[0].anatomy)
        same.append(scenes[1].anatomy)
        other.append(scenes[0].pose != scenes[1].pose)
    assert [a.chest for a in first] == [a.chest for a in same]
    assert len({a.chest for a in first}) == len(first)
    assert all(other)
