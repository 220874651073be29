"""Which patients a label budget annotates: a share of them, or some of each class; nested by construction."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.splits import uniform


def annotated_patients(
    labels: npt.NDArray[np.float32], patients: npt.NDArray[np.str_], label_fraction: float, draw: int, shots: int | None
) -> list[str]:
    """The patients of the training side whose images a run has labels of.

    Args:
        labels: (N, findings) 0, 1 or NaN, of the training images.
        patients: (N,).
        label_fraction: of the patients; 1 takes all.
        draw: which of the orders.
        shots: patients a class instead; None goes by the fraction.

    Raises:
        PipelineError: there are fewer patients of a class than ``shots``.
    """
    strata = strata_of(labels, patients)
    if shots is not None:
        return few_shots(draw, strata, shots)
    if label_fraction == 1.0:
        return sorted(strata)
    return label_order(draw, strata)[: max(2, round(label_fraction * len(strata)))]


def strata_of(labels: npt.NDArray[np.float32], patients: npt.NDArray[np.str_]) -> dict[str, str]:
    """What is known of each patient, a character a finding: 1 in some image, else 0 in some, else x.

    Args:
        labels: (N, findings) 0, 1 or NaN.
        patients: (N,).
    """
    known: dict[str, list[str]] = {}
    for patient, row in zip(patients.tolist(), labels.tolist(), strict=True):
        mine = known.setdefault(patient, ["x"] * len(row))
        for position, value in enumerate(row):
            if value == 1 or (value == 0 and mine[position] == "x"):
                mine[position] = str(int(value))
    return {patient: "".join(marks) for patient, marks in known.items()}


def label_order(draw: int, strata: Mapping[str, str]) -> list[str]:
    """Patients in the order in which a growing label budget annotates them; nested by construction.

    One patient of each class of each finding first, so that no budget lacks a class that is there; then so that each
    stratum keeps its share. Who of a stratum is first hangs on the draw and the pseudonym.

    Args:
        draw: another number, another order.
        strata: of each patient, see ``strata_of``.
    """
    chance = {patient: (uniform(draw, "labels", str(draw), patient), patient) for patient in strata}
    by_chance = sorted(strata, key=lambda patient: chance[patient])
    leaders: dict[str, None] = {}
    for position in range(len(next(iter(strata.values()), ""))):
        for label in "10":
            first = next((patient for patient in by_chance if strata[patient][position] == label), None)
            leaders |= {first: None} if first is not None else {}
    sizes = Counter(strata.values())
    seen: Counter[str] = Counter()
    place = {}
    for patient in by_chance:
        place[patient] = (seen[strata[patient]] + 0.5) / sizes[strata[patient]]
        seen[strata[patient]] += 1
    rest = sorted((patient for patient in strata if patient not in leaders), key=lambda p: (place[p], chance[p]))
    return [*leaders, *rest]


def few_shots(draw: int, strata: Mapping[str, str], shots: int) -> list[str]:
    """The first ``shots`` patients of each class of each finding, in the order of a draw's chance; nested in shots.

    Raises:
        PipelineError: there are not so many; says of which.
    """
    by_chance = sorted(strata, key=lambda patient: (uniform(draw, "labels", str(draw), patient), patient))
    chosen: dict[str, None] = {}
    for position in range(len(next(iter(strata.values()), ""))):
        for label in "10":
            own = [patient for patient in by_chance if strata[patient][position] == label]
            if len(own) < shots:
                raise PipelineError(
                    f"{shots} labelled patients a class are wanted; of finding {position + 1} only {len(own)} are "
                    f"{'positive' if label == '1' else 'negative'} in training. Lower the method's shots"
                )
            chosen |= dict.fromkeys(own[:shots])
    return list(chosen)
