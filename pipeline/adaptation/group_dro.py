"""GroupDRO: fine-tuning for the worst group of source site and label, instead of for the mean.

Sagawa S, Koh PW, Hashimoto TB, Liang P. Distributionally Robust Neural Networks for Group Shifts. ICLR 2020. It needs
two source sites or more, and no image of a target.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pipeline.errors import PipelineError
from pipeline.params import StrictParams
from pipeline.training.alignment import Reweighted, Told, source_feed, train_around
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``remedies.group_dro``: the peak learning rate, or several to choose from on id_val; the ``step`` of the weights.

    The paper stresses that it helps with strong regularisation or early stopping only (``finetune.weight_decay``,
    ``finetune.patience``). The epoch is chosen by the mean id_val loss, not by the worst group's.
    """

    base: Literal["full_finetune"] = "full_finetune"
    learning_rate: LearningRates
    step: float = Field(default=0.01, gt=0.0)


def fit(engine: Engine, sites: npt.NDArray[np.str_], params: Params) -> tuple[Classifier, str]:
    """Train all weights from the pretrained start; the model and what to note.

    Args:
        engine: of all source sites.
        sites: (N,) of the engine's images.
        params: of the remedy.

    Raises:
        PipelineError: there is one source site.
    """
    groups, names = site_label_groups(engine.data.labels, sites, engine.data.train, engine.findings)
    used = np.unique(sites[engine.data.train])
    if len(used) < 2:
        raise PipelineError(
            f"remedies.group_dro: groups are source sites by label, and there is {len(used)} source site with training "
            "images. Give split.source two sites or more, or take the remedy out"
        )
    last: list[npt.NDArray[np.float64]] = []

    def fit_at(rate: float) -> tuple[Classifier, float]:
        classifier = engine.pretrained()
        feed = Told(source_feed(engine))
        labels = torch.from_numpy(engine.data.labels)
        module = Reweighted(classifier, feed, labels, torch.from_numpy(groups), params.step)
        loss = train_around(engine, module, feed, Plan(rate))
        last.append(module.weights.cpu().numpy())
        return classifier.to(engine.fabric.device), loss

    model = engine.best_of(params.learning_rate, fit_at)
    shares = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, last[-1], strict=True))
    return model, f"weights of the groups at the end: {shares}" if len(last) == 1 else "groups of site and label"


def site_label_groups(
    labels: npt.NDArray[np.float32], sites: npt.NDArray[np.str_], train: npt.NDArray[np.int64], findings: list[str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Groups that occur in training, as numbers (N, findings), -1 where there is no label; and their names.

    Args:
        labels: (N, findings) 0, 1 or NaN.
        sites: (N,).
        train: indices.
        findings: names.
    """
    groups = np.full(labels.shape, -1, np.int64)
    names: list[str] = []
    for position, finding in enumerate(findings):
        for site in np.unique(sites[train]):
            for label in (0, 1):
                own = (sites == site) & (labels[:, position] == label)
                if own[train].any():
                    groups[own, position] = len(names)
                    names.append(f"{site} {finding} {label}")
    return groups, names
