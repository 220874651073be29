"""Transferability scores of every backbone on the source's training images, from cached features; trains nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import cli
from pipeline.analysis.transferability import h_score, leep, log_me, source_probabilities
from pipeline.errors import PipelineError
from pipeline.params import check_versions, load_names
from pipeline.tables.choice import TransferScores
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.labels import Labels
from pipeline.tables.training import Samples
from pipeline.training.backbone import architecture
from pipeline.training.checkpoints import load_weights

SCORES_FILE = "scores.parquet"
FEATURES_FILE = "features.npy"  # what the last linear layer sees

Row = dict[str, Any]


def training_labels(samples: pd.DataFrame, labels: pd.DataFrame) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
    """The training images' rows in the store, (N,), and their labels: (N, findings) 0, 1 or NaN.

    Args:
        samples: as ``tables.training.Samples``.
        labels: as ``tables.labels.Labels``.
    """
    train = samples[samples["split"] == "train"].sort_values("array_index")
    wide = labels.set_index(["image_id", "finding"])["label"].unstack().reindex(train["image_id"])  # noqa: PD010 - a key is unique; nothing to aggregate
    return train["array_index"].to_numpy(np.int64), wide.astype("Float64")


def last_linear(model: nn.Module) -> str:
    """Path of a classifier's last linear layer, its class head: what ``backbone.build`` cuts off."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def no_head(card: dict[str, Any]) -> str | None:
    """Why the source's class head says nothing, from the weights' card; None where there is one."""
    if card["initialisation"] == "random":
        return "the weights are random: no source classes"
    if str(card["request"].get("file")).endswith(".safetensors"):  # fetch_weights puts a random head there
        return "the weights are a study's own model, without a head of source classes"
    if card["request"].get("head") is False:
        return "the file of the weights has no class head"
    return None


def class_probabilities(
    features: npt.NDArray[np.float32], state: dict[str, Tensor], backbone: str
) -> npt.NDArray[np.float64]:
    """Probabilities (N, K) of the source's classes from the features (N, D) that its head sees.

    Raises:
        ParamsError: torchvision has no such classifier.
    """
    head = last_linear(architecture(backbone, 0, empty=True))
    weight = state[f"{head}.weight"].numpy()
    bias = state.get(f"{head}.bias")
    return source_probabilities(features, weight, np.zeros(len(weight)) if bias is None else bias.numpy())


def scores_of(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float64],
    probabilities: npt.NDArray[np.float64] | None,
    headless: str | None,
) -> list[Row]:
    """Scores of one backbone and finding, as ``tables.choice.TransferScores`` has them.

    Args:
        features: (N, D).
        labels: (N,) 0, 1 or NaN.
        probabilities: (N, K) of the source's classes; None where ``headless`` says why there are none.
        headless: see there.
    """
    known = labels[~np.isnan(labels)]
    positives = int(known.sum())
    one_class = ""
    if positives in (0, len(known)):
        one_class = f"one class only (positives: {positives})" if len(known) else "no annotated images"
    values = {
        "h_score": h_score(features, labels),
        "log_me": log_me(features, labels),
        "leep": float("nan") if probabilities is None else leep(probabilities, labels),
    }
    return [
        {
            "score": score,
            "value": value,
            "num_images": len(known),
            "note": headless if score == "leep" and headless is not None else one_class,
        }
        for score, value in values.items()
    ]


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        features="the folder of all backbones' features",
        weights="the folder of all backbones' weights",
        out="folder for the scores",
    )
    args = arguments.parse_args()
    check_versions("numpy", "scipy", path=args.params)
    backbones = load_names("backbones", args.params)
    for parent in (args.features, args.weights):
        cli.prune(parent, backbones)
    samples = read_table(Samples, args.gather / "samples.parquet")
    index, labels = training_labels(samples, read_table(Labels, args.gather / "labels.parquet"))
    rows: list[Row] = []
    with tqdm(total=len(backbones) * len(labels.columns), desc="choice", unit="finding", mininterval=0.5) as bar:
        for backbone in backbones:
            state, card = load_weights(args.weights / backbone)
            every = np.load(args.features / backbone / FEATURES_FILE, mmap_mode="r", allow_pickle=False)
            if len(every) != len(samples):
                raise PipelineError(
                    f"backbones.{backbone}: features of {len(every)} images, but gather has {len(samples)}; "
                    "run `dvc repro`"
                )
            features = every[index]
            headless = no_head(card)
            probabilities = None if headless is not None else class_probabilities(features, state, backbone)
            for finding in labels.columns:
                known = labels[finding].to_numpy(np.float64, na_value=np.nan)
                made = scores_of(features, known, probabilities, headless)
                rows += [{"backbone": backbone, "finding": finding, **row} for row in made]
                bar.update()
    write_table(TransferScores, rows, args.out / SCORES_FILE)
    print(f"{len(rows)} scores of {len(backbones)} backbones on {len(index)} images")


if __name__ == "__main__":
    cli.run(main)
