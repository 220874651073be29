"""Say how many patients make the intervals of AUROC and sensitivity as narrow as wanted.

For the test of one hospital or subgroup, of one model: what other trainings would change comes on top.
"""

import argparse

from pipeline import cli
from pipeline.metrics.planning import MOST_PATIENTS, Cohort, auroc_width, patients_needed, sensitivity_width
from pipeline.params import ParamsError

_SHARES = {
    "auroc": "the AUROC that is expected",
    "sensitivity": "the sensitivity that is expected at the operating point",
    "prevalence": "share of patients with the finding",
    "width": "how wide the interval may be, from limit to limit",
}


def answer(name: str, value: float, patients: int | None, cohort: Cohort, width: float) -> str:
    """One line: the metric, its expected value and the patients that it takes."""
    if patients is None:
        return f"{name} {value:g}: not within {width:g} with {MOST_PATIENTS:,} patients"
    return f"{name} {value:g}: {patients:,} patients, {round(patients * cohort.prevalence):,} of them with the finding"


def main() -> None:
    """Run the command."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in _SHARES.items():
        arguments.add_argument(f"--{name}", type=float, required=True, metavar="SHARE", help=text)
    arguments.add_argument("--images", type=float, default=1.0, metavar="NUMBER", help="a patient has; default: 1")
    arguments.add_argument(
        "--correlation", type=float, default=0.5, metavar="SHARE",
        help="of the scores of two images of a patient, given the label; default: 0.5",
    )  # fmt: skip
    arguments.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="default: 0.95")
    args = arguments.parse_args()
    for name in (*_SHARES, "confidence"):
        if not 0 < getattr(args, name) < 1:
            raise ParamsError(f"--{name} must lie between 0 and 1; got {getattr(args, name):g}")
    if not 0 <= args.correlation <= 1:
        raise ParamsError(f"--correlation must lie in [0, 1]; got {args.correlation:g}")
    if not 1 <= args.images < float("inf"):
        raise ParamsError(f"--images must be 1 or more; got {args.images:g}")
    cohort = Cohort(args.prevalence, args.images, args.correlation)
    print(f"{args.confidence * 100:g} % interval of width {args.width:g}, prevalence {args.prevalence:g}:")
    area = patients_needed(lambda n: auroc_width(n, args.auroc, cohort, args.confidence), args.width)
    called = patients_needed(lambda n: sensitivity_width(n, args.sensitivity, cohort, args.confidence), args.width)
    print(answer("AUROC", args.auroc, area, cohort, args.width))
    print(answer("sensitivity", args.sensitivity, called, cohort, args.width))


if __name__ == "__main__":
    cli.run(main)
