"""A bundle on disk: what ``apply`` needs beside MONAI's files, and the hashes that tell whether it is whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save

from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.handover.rule import Reference, Rule
from pipeline.handover.seen import Seen
from pipeline.imaging.recipe import PreprocessParams
from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import file_sha256, load_model
from pipeline.training.determinism import ComputeParams

METADATA, INFERENCE, SCHEMA, APPLY = (
    f"configs/{name}.json" for name in ("metadata", "inference", "schema", "apply")
)  # fmt: skip
MODELS, REFERENCE, CARD, LICENCE = "models", "models/reference.safetensors", "docs/README.md", "LICENSE"
NEEDED = (INFERENCE, SCHEMA, APPLY, f"{MODELS}/model.json", f"{MODELS}/model.safetensors", REFERENCE, CARD, LICENCE)


class Application(StrictParams):
    """configs/apply.json: all that makes new files into what the model was evaluated on.

    ``check_logits``: of the arrays in check/, in the order of their names, what the model gave where it was made.
    """

    format: Literal[1]
    name: str
    run: str
    findings: list[str]
    ingest: IngestParams
    preprocess: PreprocessParams
    compute: ComputeParams
    seen: Seen
    rule: Rule
    check_logits: list[list[float]]
    versions: dict[str, str]


def to_json(content: Any) -> str:
    """As all JSON files of a bundle are written."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_text(folder: Path, name: str, text: str) -> None:
    """One file of a bundle."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_reference(folder: Path, reference: Reference) -> None:
    """Mean and inverse covariance of the training images' features."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(reference).items()}
    (folder / REFERENCE).write_bytes(save(tensors))


def seal(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata, with the hash of every other file of the bundle; nothing may change after it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / METADATA)
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_text(folder, METADATA, to_json({**metadata, "file_sha256": hashes}))


def verify(folder: Path) -> dict[str, Any]:
    """The metadata of a bundle that is whole.

    Raises:
        PipelineError: it is no bundle of this repository, lacks a file, or holds another one than its metadata says.
    """
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        hashes = {str(name): str(value) for name, value in metadata["file_sha256"].items()}
    except FileNotFoundError:
        raise PipelineError(f"{folder} is no bundle: {METADATA} is not there") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PipelineError(
            f"{folder}: {METADATA} is damaged, or of a bundle that this repository did not make"
        ) from None
    if lacking := sorted(set(NEEDED) - set(hashes)):
        raise PipelineError(f"{folder}: {METADATA} lists no {', '.join(lacking)}; this bundle cannot be applied")
    for name, expected in sorted(hashes.items()):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise PipelineError(f"{folder}: {METADATA} names a file outside of the bundle")
        if not path.is_file():
            raise PipelineError(f"{folder}: {name} is missing; get the bundle anew")
        if file_sha256(path) != expected:
            raise PipelineError(
                f"{folder}: {name} is not the file whose hash is in {METADATA}; it was changed or damaged. Get the "
                "bundle anew"
            )
    return dict(metadata)


def read_application(folder: Path) -> Application:
    """What a verified bundle says of its use.

    Raises:
        PipelineError: it was made by another version of this repository.
    """
    try:
        return Application.model_validate_json((folder / APPLY).read_bytes())
    except ValueError:
        raise PipelineError(
            f"{folder}: {APPLY} is not of this version of the repository; apply it with the version that made it"
        ) from None


def read_model(folder: Path) -> tuple[Classifier, dict[str, Any], Reference]:
    """A verified bundle's model in evaluation mode, its card, and where its training images lie."""
    model, card = load_model(folder / MODELS)
    tensors = load_file(folder / REFERENCE)
    return model, card, Reference(tensors["mean"].numpy(), tensors["precision"].numpy())
