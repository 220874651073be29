"""What each method's training took on this machine, in seconds and energy, beside the AUROC that it gave.

Run it after `dvc repro`. Times differ from run to run, so that they are in no output of the graph: `finetune` leaves
them in .checkpoints/costs, and this command joins them with the evaluation. Trainings that came out of DVC's cache
have none. The report shows the same curves over counted operations, which are alike everywhere.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.reporting.figures import METHOD_LOOKS, SPARE_LOOKS, to_png
from pipeline.reporting.study import ELSEWHERE, HOME, label
from pipeline.tables.contract import read_table
from pipeline.tables.evaluation import Efficiency
from pipeline.tables.training import Runs
from pipeline.training.meter import read_cost

BUDGET = ["backbone", "method", "label_fraction", "shots"]
AXES = {"seconds": "Seconds per training", "energy_joule": "Energy per training in joules"}


def measured(runs: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The runs whose model was trained here, with device, devices, seconds and energy_joule.

    Args:
        runs: as ``tables.training.Runs``.
        folder: with a file a run; one that tells of another model is of an earlier training, and is left out.
    """
    rows = []
    for run in runs.to_dict("records"):
        found = read_cost(folder / f"{run['run']}.json")
        if found is not None and found[1] == run["model_sha256"]:
            cost = found[0]
            rows.append(
                {**{name: run[name] for name in ("run", *BUDGET)}, "device": cost.device, "devices": cost.devices,
                 "seconds": cost.seconds, "energy_joule": cost.energy_joule}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["run", *BUDGET, "device", "devices", "seconds", "energy_joule"])


def join(costs: pd.DataFrame, efficiency: pd.DataFrame) -> pd.DataFrame:
    """A row a family, place and kind of device: mean seconds, device-hours and joules beside the AUROC.

    Args:
        costs: as ``measured`` gives.
        efficiency: as ``tables.evaluation.Efficiency``.
    """
    plain = costs.astype({"label_fraction": float, "shots": "float64", "seconds": float, "energy_joule": float})
    grouped = plain.groupby([*BUDGET, "device", "devices"], dropna=False, sort=True)
    # A mean over the runs that tell it; null where none does.
    means = grouped.agg(num_runs=("run", "size"), seconds=("seconds", "mean"), energy_joule=("energy_joule", "mean"))
    means = means.reset_index()
    means["device_hours"] = means["seconds"] * means["devices"] / 3600
    wanted = efficiency.astype({"label_fraction": float, "shots": "float64"})
    columns = ["run", "finding", "split", "group", "labelled_patients", "value", "ci_low", "ci_high", *BUDGET]
    return wanted[columns].merge(means, on=BUDGET, how="inner").sort_values(["finding", "split", "run", "device"])


def draw(table: pd.DataFrame, finding: str) -> Figure:
    """AUROC over each cost that is known (rows), at home and elsewhere (columns), for all methods of a finding."""
    known = [name for name in AXES if table[name].notna().any()]
    figure = Figure(figsize=(10.4, 3.6 * len(known) + 0.9), layout="constrained")
    figure.suptitle(f"What training took: {label(finding)}", x=0.01, ha="left", fontweight="bold")
    grid = figure.subplots(len(known), 2, sharey=True, squeeze=False)
    spare = dict(zip(sorted(set(table["method"]) - set(METHOD_LOOKS)), SPARE_LOOKS * 9, strict=False))
    for row, name in zip(grid, known, strict=True):
        for axes, place in zip(row, (HOME, ELSEWHERE), strict=True):
            here = table[(table["split"] == place.split) & (table["group"] == place.group) & table[name].notna()]
            for method, rows in here.groupby("method", sort=True):
                colour, marker = (METHOD_LOOKS | spare)[str(method)]
                error = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
                axes.errorbar(
                    rows[name], rows["value"], yerr=error, fmt=marker, color=colour, lw=1, alpha=0.85,
                    label=label(str(method)),
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_title(place.title, loc="left", fontsize=10)
            axes.set_xlabel(f"{AXES[name]} (logarithmic)")
            axes.grid(axis="y")
        row[0].set_ylabel("AUROC, 95 % interval")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--runs", type=Path, default=Path("data/predict/runs.parquet"), metavar="PATH")
    arguments.add_argument("--efficiency", type=Path, default=Path("data/evaluate/efficiency.parquet"), metavar="PATH")
    arguments.add_argument("--out", type=Path, default=Path("reports"), metavar="FOLDER", help="default: reports")
    args = arguments.parse_args()
    runs = read_table(Runs, args.runs)
    costs = measured(runs, args.params.parent / ".checkpoints" / "costs")
    timed = costs[costs["seconds"].notna()]
    if timed.empty:
        raise PipelineError(
            f"none of the {len(runs)} models was trained on this machine in one go: they came out of the cache, or the "
            "training was resumed. `dvc repro --force finetune` trains anew"
        )
    table = join(timed, read_table(Efficiency, args.efficiency))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "costs.csv", index=False)
    for finding in sorted(set(table["finding"])):
        (args.out / f"costs-{finding}.png").write_bytes(to_png(draw, table[table["finding"] == finding], finding))
    home = table[table["split"] == HOME.split]
    print(
        home[["run", "device", "num_runs", "seconds", "device_hours", "energy_joule", "value"]].to_string(index=False)
    )
    print(
        f"{len(timed)} of {len(runs)} trainings were timed here; all of it: {args.out / 'costs.csv'} and its pictures"
    )


if __name__ == "__main__":
    cli.run(main)
