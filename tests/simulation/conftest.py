import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pipeline.simulation.acquisition import Encoding, encode
from pipeline.simulation.archive import draw_scene, take_picture
from pipeline.simulation.cohort import Hospital, Patient, Study, draw_cohort
from pipeline.simulation.objects import compress, image_object, to_bytes
from pipeline.simulation.spec import SimulatedSite


class Made(NamedTuple):
    hospital: Hospital
    patient: Patient
    study: Study
    signal: np.ndarray
    encoding: Encoding
    dataset: Dataset
    content: bytes


@pytest.fixture(scope="session")
def make() -> Callable[..., Made]:
    """One marked image of a site with these settings, as an object and as a file's bytes; not to be changed."""

    @functools.cache
    def made(**settings: Any) -> Made:
        hospital = Hospital("north", SimulatedSite(patients=4, prevalence=0.5, **settings), seed=3)
        patient = draw_cohort(hospital)[0]
        study = patient.studies[0]
        image = study.images[0]
        scene = draw_scene(hospital, patient, study, image)
        signal = take_picture(scene, hospital.spec, marker=True, rng=hospital.stream(image.key, "noise"))
        encoding = encode(signal, hospital.spec)
        dataset = compress(image_object(hospital, patient, study, image, encoding), hospital.spec.transfer_syntax)
        return Made(hospital, patient, study, signal, encoding, dataset, to_bytes(dataset))

    return made
