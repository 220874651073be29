"""Who comes to a simulated hospital, with which studies, and how sick: drawn before anything is rendered."""

import datetime
import hashlib
import math
import uuid
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.simulation.spec import SimulatedSite

# Nobody is called so; one name needs a character set beyond ASCII.
SURNAMES = ("TESTPERSON", "MUSTERFRAU", "MÜSTERMANN", "PLACEHOLDER", "FICTITIOUS", "NOBODYSON", "DUMMYFIELD")
GIVEN = ("ALPHABETA", "EXEMPLA", "PROBANDUS", "SPECIMENA", "TESTINA", "MOCKWELL")
STUDIES_PER_PATIENT = {1: 0.70, 2: 0.25, 3: 0.05}
REPEATED_EXPOSURE = 0.1  # studies with a second exposure
PERSISTENCE = 0.8  # see draw_cohort
SICK, HEALTHY = 1, 0


@dataclass(frozen=True)
class Image:
    """One exposure."""

    key: str
    number: int
    sop_instance_uid: str
    marker: bool


@dataclass(frozen=True)
class Study:
    """One visit. ``severity`` is the latent z, shared by the study's exposures."""

    key: str
    study_instance_uid: str
    accession_number: str
    moment: datetime.datetime
    view_position: Literal["PA", "AP"]
    label: int
    severity: float
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Patient:
    """One fake person; ``family`` and ``given`` may hold letters beyond ASCII."""

    key: str
    family: str
    given: str
    patient_id: str
    sex: Literal["F", "M"]
    birth_date: datetime.date
    studies: tuple[Study, ...]


@dataclass(frozen=True)
class Hospital:
    """One simulated site, and the source of all that is random in it."""

    site: str
    spec: SimulatedSite
    seed: int

    def stream(self, *names: str) -> np.random.Generator:
        """The random stream that belongs to these names: no other site's or name's draws move it.

        Not by Python's ``hash``, which changes with each process.
        """
        digest = hashlib.sha256("/".join((self.site, *names)).encode()).digest()
        return np.random.default_rng(np.random.SeedSequence([self.seed, int.from_bytes(digest[:16], "big")]))

    def uid(self, *names: str) -> str:
        """A UID under 2.25, made from a UUID (PS3.5 B.2); the same for the same names."""
        text = "/".join(("simulation", str(self.seed), self.site, *names))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def draw_cohort(hospital: Hospital) -> list[Patient]:
    """All patients of a site.

    Exactly ``round(prevalence * patients)`` patients are chronically sick (at least 1, and 1 healthy). A study
    has its patient's status as label with probability ``PERSISTENCE``, else a fresh draw with the site's
    prevalence. So each study has the site's prevalence, and two studies of one patient correlate by
    ``PERSISTENCE ** 2`` = 0.64: images are not independent, patients are.
    """
    spec = hospital.spec
    num_sick = min(max(round(spec.prevalence * spec.patients), 1), spec.patients - 1)
    rng = hospital.stream("cohort")
    status = rng.permutation(np.arange(spec.patients) < num_sick)
    numbers = rng.permutation(900_000)[: spec.patients] + 100_000
    return [_draw_patient(hospital, index, int(status[index]), int(numbers[index])) for index in range(spec.patients)]


def _draw_patient(hospital: Hospital, index: int, status: int, number: int) -> Patient:
    key = f"patient{index:05d}"
    rng = hospital.stream(key)
    first = datetime.date(2019, 1, 7) + datetime.timedelta(days=int(rng.integers(0, 1500)))
    # Some above 89, whom pseudonymisation has to treat apart.
    birth_date = first - datetime.timedelta(days=int(365.25 * np.clip(rng.normal(62, 17), 19, 97)))
    family, given = str(rng.choice(SURNAMES)), str(rng.choice(GIVEN))
    sex: Literal["F", "M"] = "F" if rng.random() < 0.48 else "M"
    count = int(rng.choice(list(STUDIES_PER_PATIENT), p=list(STUDIES_PER_PATIENT.values())))
    days = np.concatenate([[0], np.cumsum(rng.integers(20, 400, size=count - 1))])
    studies = tuple(
        _draw_study(hospital, f"{key}/study{order}", status, first + datetime.timedelta(days=int(day)))
        for order, day in enumerate(days)
    )
    return Patient(key, family, given, f"FAKE-{hospital.site.upper()[:40]}-{number}", sex, birth_date, studies)


def _draw_study(hospital: Hospital, key: str, status: int, day: datetime.date) -> Study:
    spec = hospital.spec
    rng = hospital.stream(key)
    persists, fresh = rng.random() < PERSISTENCE, int(rng.random() < spec.prevalence)
    label = status if persists else fresh
    severity = float(rng.normal(spec.d_prime * label, 1.0))
    time = datetime.time(int(rng.integers(7, 20)), int(rng.integers(0, 60)), int(rng.integers(0, 60)))
    view_position: Literal["PA", "AP"] = "AP" if rng.random() < 0.25 else "PA"
    accession_number = f"ACC{rng.integers(10**8):08d}"
    marker_probability = spec.marker_positive if label == SICK else spec.marker_negative
    images = tuple(
        Image(
            f"{key}/image{order}",
            order + 1,
            hospital.uid(key, f"image{order}"),
            bool(rng.random() < marker_probability),
        )
        for order in range(1 + int(rng.random() < REPEATED_EXPOSURE))
    )
    moment = datetime.datetime.combine(day, time)
    return Study(key, hospital.uid(key), accession_number, moment, view_position, label, severity, images)


def attainable_auroc(d_prime: float) -> float:
    """The AUROC of an observer who sees z itself: Phi(d_prime / sqrt(2)).

    An upper bound for whoever judges by the opacity, as the image shows z through noise and anatomy.
    """
    return _normal_cdf(d_prime / math.sqrt(2.0))


def attainable_auroc_with_marker(d_prime: float, positive: float, negative: float) -> float:
    """The AUROC of an observer who sees z and the marker, and knows how the marker goes with the label here.

    The log-likelihood ratio of z is normal with mean +-d_prime**2 / 2 and variance d_prime**2; the marker's
    adds a constant. This is the upper bound for any reader of a single image: above ``attainable_auroc``, what
    a reader reaches is owed to the shortcut.
    """
    total = 0.0
    for sick in (True, False):
        for healthy in (True, False):
            weight = (positive if sick else 1 - positive) * (negative if healthy else 1 - negative)
            if weight > 0:
                gain = _marker_evidence(sick, positive, negative) - _marker_evidence(healthy, positive, negative)
                total += weight * _normal_cdf((d_prime**2 + gain) / (math.sqrt(2.0) * d_prime))
    return total


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def _marker_evidence(seen: bool, positive: float, negative: float) -> float:
    given_sick, given_healthy = (positive, negative) if seen else (1 - positive, 1 - negative)
    if given_sick == 0:
        return -math.inf
    return math.inf if given_healthy == 0 else math.log(given_sick / given_healthy)
