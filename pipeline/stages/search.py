"""A short search over backbone and method by successive halving on the source's id_val loss alone.

It is reported beside the full runs and chooses nothing: every backbone and method of params is trained in full.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.params import check_versions, load_names, load_params, parse, read_params_file, section_of
from pipeline.stages.finetune import (
    FEATURES_FILE,
    POOLED_FILE,
    FinetuneParams,
    Run,
    load_dataset,
    load_method,
    restrict,
)
from pipeline.tables.choice import SearchRungs
from pipeline.tables.contract import write_table
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import Dataset
from pipeline.training.halving import Candidate, SearchParams, schedule, successive_halving
from pipeline.training.loop import LoopParams, predict_logits
from pipeline.training.loss import masked_loss

RUNGS_FILE = "rungs.parquet"


@dataclass(frozen=True)
class Source:
    """A pretrained backbone: its state dict, and the features (N, D) of all gathered images, see ``Engine``."""

    weights: dict[str, Tensor]
    features: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trainer:
    """Trains one candidate for a rung, as ``finetune`` trains it in full.

    Attributes:
        fabric: the device.
        data: the source's images, all labels.
        findings: columns of the labels.
        methods: name to module of ``pipeline/transfer`` and its params.
        source: backbone to what is known of it.
        shared: section ``finetune``.
        compute: section ``compute``.
        seed: of every fit.
    """

    fabric: Fabric
    data: Dataset
    findings: list[str]
    methods: dict[str, tuple[Any, Any]]
    source: Callable[[str], Source]
    shared: FinetuneParams
    compute: ComputeParams
    seed: int

    def fit(self, candidate: Candidate, epochs: int) -> tuple[float, bool]:
        """The id_val loss of the returned model, and whether training it went by epochs.

        Raises:
            PipelineError: it cannot be trained; the text says why.
        """
        backbone, method = candidate
        module, params = self.methods[method]
        if "epochs" in type(params).model_fields:
            raise PipelineError(f"methods.{method}.epochs: it has epochs of its own, whatever the rung; not searched")
        known = self.source(backbone)
        loop = {name: getattr(self.shared, name) for name in LoopParams.model_fields}
        engine = Engine(
            fabric=self.fabric,
            backbone=backbone,
            weights=known.weights,
            findings=self.findings,
            data=restrict(self.data, Run(backbone, method, self.seed, 1.0, 0), self.shared),
            features=known.features,
            pooled=known.pooled,
            loop=LoopParams(**{**loop, "epochs": epochs}),
            seed=self.seed,
            layout=memory_format(self.compute),
            description=f"{backbone}-{method}",
            compiled=self.compute.compile,
        )
        model = module.fit(engine, params)
        # A probe's or prototypes' rows have no learning rate: nothing was trained by gradient.
        by_epochs = any(math.isfinite(row.learning_rate) for row in engine.curves)
        return id_val_loss(engine, model, self.compute.batch_size), by_epochs


def id_val_loss(engine: Engine, model: Classifier, batch_size: int) -> float:
    """Mean log loss of a model on id_val, in nats per annotated label: all alike, however a method weighs its own.

    Raises:
        PipelineError: id_val has no annotated label.
    """
    data = engine.data
    labels = torch.from_numpy(data.labels[data.id_val]).double()
    if not torch.isfinite(labels).any():
        raise PipelineError("selecting needs an annotated image in id_val; there is none")
    model = model.to(memory_format=engine.layout).to(engine.fabric.device)
    logits = predict_logits(engine.fabric, model, data.images, data.id_val, batch_size, engine.layout)
    total, count = masked_loss(torch.from_numpy(logits).double(), labels)
    return float(total / count)


def search(trainer: Trainer, candidates: list[Candidate], params: SearchParams) -> list[dict[str, Any]]:
    """Rows of ``tables.choice.SearchRungs``; what has no epochs is fitted once and keeps its loss."""
    fitted: dict[Candidate, float] = {}
    total = sum(entrants for entrants, _ in schedule(len(candidates), params.epochs, params.keep))
    with tqdm(total=total, desc="search", unit="fit", disable=not trainer.fabric.is_global_zero) as bar:

        def train(candidate: Candidate, epochs: int) -> float:
            try:
                if candidate in fitted:
                    return fitted[candidate]
                loss, by_epochs = trainer.fit(candidate, epochs)
            finally:
                bar.update()
            if not by_epochs:
                fitted[candidate] = loss
            return loss

        trials = successive_halving(candidates, params.epochs, params.keep, train)
    return [
        {
            "rung": trial.rung,
            "epochs": 0 if trial.candidate in fitted else trial.epochs,
            "backbone": trial.candidate[0],
            "method": trial.candidate[1],
            "id_val_loss": trial.loss,
            "kept": trial.kept,
            "note": trial.note,
        }
        for trial in trials
    ]


def load_source(weights: Path, features: Path, backbone: str) -> Source:
    """What ``fetch_weights`` and ``features`` left of a backbone.

    Raises:
        PipelineError: the weights are another backbone's.
    """
    state, card = load_weights(weights / backbone)
    if card["backbone"] != backbone:
        raise PipelineError(f"{weights / backbone} holds weights of {card['backbone']}, not of {backbone}")
    own = np.load(features / backbone / FEATURES_FILE, allow_pickle=False)
    pooled = features / backbone / POOLED_FILE
    return Source(state, own, np.load(pooled, allow_pickle=False) if pooled.is_file() else own)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        features="the folder of all backbones' features",
        weights="the folder of all backbones' weights",
        out="folder for the rungs",
    )
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scikit-learn", "torch", "torchvision", path=args.params)
    params = load_params(SearchParams, "search", args.params)
    shared = load_params(FinetuneParams, "finetune", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    backbones = load_names("backbones", args.params)
    tunings = section_of(read_params_file(args.params), "methods", args.params)
    modules = {name: load_method(name) for name in load_names("methods", args.params)}
    methods = {
        name: (module, parse(module.Params, tunings[name], f"methods.{name}")) for name, module in modules.items()
    }
    fabric = make_fabric(compute, together=True)
    if fabric.is_global_zero:
        for parent in (args.features, args.weights):
            cli.prune(parent, backbones)
    fabric.barrier()
    for backbone in backbones:  # what is damaged is refused here: a candidate that fails later is dropped
        load_source(args.weights, args.features, backbone)
    data, findings = load_dataset(args.gather)

    @lru_cache(maxsize=1)  # candidates come backbone by backbone
    def source(backbone: str) -> Source:
        return load_source(args.weights, args.features, backbone)

    trainer = Trainer(fabric, data, findings, methods, source, shared, compute, params.seed)
    rows = search(trainer, [(backbone, method) for backbone in backbones for method in methods], params)
    if fabric.is_global_zero:
        write_table(SearchRungs, rows, args.out / RUNGS_FILE)
        won = [f"{row['backbone']}-{row['method']}" for row in rows if row["rung"] == rows[-1]["rung"] and row["kept"]]
        print(f"{len(rows)} fits in {rows[-1]['rung'] + 1} rungs; the last kept {won[0] if won else 'none'}")


if __name__ == "__main__":
    cli.run(main)
