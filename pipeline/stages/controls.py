"""Controls of the study: probes on permuted labels, and one method against itself; no model is trained, no GPU used.

Test labels are read, dealt out anew among patients for the probes, and as they are for a method against itself: no
method is compared with another, so no opening is recorded.
"""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from pipeline import cli
from pipeline.analysis.controls import ControlsParams, Probed, controls
from pipeline.analysis.verdict import VerdictParams
from pipeline.embedded import read_features
from pipeline.params import check_versions, load_names, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.controls import Controls
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        embed="the folder of all backbones' embed",
        predict="the folder of predict",
        labels="the folder of all sites' labels",
        out="folder for the table",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scikit-learn", "scipy", path=args.params)
    params = load_params(ControlsParams, "controls", args.params)
    bounds = load_params(VerdictParams, "verdict", args.params)
    sides = load_params(SplitParams, "split", args.params)
    backbones = load_names("backbones", args.params)
    cli.prune(args.embed, backbones)
    cli.prune(args.labels, sides.sites)
    labels = plain_text(read_tables(Labels, [args.labels / site / "labels.parquet" for site in sides.sites]))
    predictions = plain_text(read_table(Predictions, args.predict / "predictions.parquet"))
    probes: dict[tuple[str, str], Probed] = {}
    for backbone in backbones:
        features = read_features(args.embed / backbone)
        for finding, rows in labels.groupby("finding", sort=True):
            known = rows.set_index("image_id")["label"].reindex(features.index["image_id"])
            numbers = pd.to_numeric(known).astype("Float64").to_numpy(np.float32, na_value=np.nan)
            patients, splits = (features.index[name].to_numpy(object) for name in ("patient_id", "split"))
            probes[str(finding), backbone] = Probed(features.array, numbers, patients, splits)
    with threadpool_limits(1):  # sums of several threads depend on how many there are
        found = controls(probes, predictions, params, bounds)
    write_table(Controls, found, args.out / "controls.parquet")
    counts = found["verdict"].value_counts()
    print(", ".join(f"{word} {int(counts.get(word, 0))}" for word in ("passed", "alarm", "undetermined")))


if __name__ == "__main__":
    cli.run(main)
