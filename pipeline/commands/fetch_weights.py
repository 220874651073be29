"""Bring each backbone's pretrained weights to data/weights, once, and check what they are.

Tried in this order: the entry's own `file` (with its SHA-256); a folder given with --from; torchvision's cache
under TORCH_HOME; torchvision's download. The graph depends on the result, so no stage needs the network. Where
nothing is reachable the command says which file to put where; a study with `weights.allow_random: true` (the
demo) goes on with random weights instead, and everything it prints says so.
"""

import http.client
import json
import re
import shutil
import socket
import urllib.error
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torchvision.models import get_model_weights

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.params import ParamsError, StrictParams, load_names, load_params, nearest
from pipeline.training.backbone import INCEPTION_PX, InputSpec, architecture, input_spec, load_state
from pipeline.training.checkpoints import MODEL_CARD, WEIGHTS_CARD, file_sha256, save_weights

_TIMEOUT_SECONDS = 20.0
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class WeightsParams(StrictParams):
    """Section ``weights``. ``allow_random``: go on without pretrained weights; for a demo, never for a study."""

    allow_random: bool = False


class BackboneParams(StrictParams):
    """An entry under ``backbones``, named as in torchvision's registry.

    ``weights``: an entry of the architecture's weights enum, for torchvision's own files. Or a local ``file``
    (relative to params.yaml): a state dict of the whole model, with its ``sha256``, a ``description`` of where it is
    from, its ``licence``, and what it was ``pretrained_on``, which decides whether the report speaks of ImageNet.

    A ``file`` may be a study's own ``model.safetensors``, with its card beside it: transfer in two steps. Its licence
    is that of the weights it was made from.

    ``rename`` is for files whose modules have names of their own (RadImageNet numbers them): the beginning of a name
    there to that in torchvision. ``head: false``: the file has no class head.
    """

    weights: str | None = None
    file: str | None = None
    sha256: str | None = None
    description: str | None = None
    pretrained_on: Literal["imagenet", "other"] = "other"
    licence: str | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    head: bool = True

    @model_validator(mode="after")
    def _one_origin(self) -> "BackboneParams":
        if (self.weights is None) == (self.file is None):
            raise ValueError("give either `weights` (torchvision's enum entry) or `file`")
        if self.file is not None and (self.sha256 is None or self.description is None):
            raise ValueError("a `file` needs its `sha256` and a `description` of what it was pretrained on")
        if self.sha256 is not None and len(self.sha256) != 64:
            raise ValueError("sha256 must have 64 hexadecimal digits")
        plain = self.file is not None and not self.file.endswith(".safetensors")
        if (self.rename or not self.head) and not plain:
            raise ValueError("`rename` and `head` are for a `file` that is a plain state dict")
        return self

    def request(self) -> dict[str, Any]:
        """What was asked for; what is left at its default since it was added leaves old cards as they are."""
        asked = self.model_dump()
        return {key: asked[key] for key in asked if key not in ("rename", "head") or key in self.model_fields_set}


def find_torchvision_file(name: str, entry: Any, given: Path | None, target: Path) -> Path | None:
    """The weights enum entry's file: in ``given``, in torch's cache, or downloaded to ``target``; None without.

    torchvision's file names end in the first digits of the SHA-256, which are checked wherever it came from.
    """
    file_name = Path(urlparse(entry.url).path).name
    prefix = file_name.rsplit("-", 1)[-1].split(".")[0]
    for folder in (given, Path(torch.hub.get_dir()) / "checkpoints"):
        if folder is not None and (folder / file_name).is_file():
            found = file_sha256(folder / file_name)
            if not found.startswith(prefix):
                raise PipelineError(f"backbones.{name}: {folder / file_name} has SHA-256 {found}, expected {prefix}...")
            return folder / file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        torch.hub.download_url_to_file(entry.url, str(target), hash_prefix=prefix, progress=True)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        print(f"{name}: no download of {file_name} ({type(error).__name__})")
        return None
    except RuntimeError:
        raise PipelineError(
            f"backbones.{name}: the download of {file_name} does not have SHA-256 {prefix}..."
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return target


def read_state(path: Path, name: str) -> dict[str, torch.Tensor]:
    """A plain state dict; code in the file is not run.

    Raises:
        PipelineError: it is something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PipelineError(f"backbones.{name}: {path} is no plain state dict ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"backbones.{name}: {path} is no plain state dict")
    # torchvision's DenseNet files are from when names of modules had dots; its own loader mends them like this.
    return {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in state.items()}


def renamed(state: dict[str, torch.Tensor], rename: dict[str, str], name: str) -> dict[str, torch.Tensor]:
    """The state with the beginnings of its names, whole parts between dots, as ``rename`` says; the longest counts.

    Raises:
        ParamsError: a beginning that no name has, or two names become one.
    """
    used: set[str] = set()

    def new(key: str) -> str:
        fitting = [old for old in rename if key == old or key.startswith(f"{old}.")]
        if not fitting:
            return key
        longest = max(fitting, key=len)
        used.add(longest)
        return rename[longest] + key.removeprefix(longest)

    made = {new(key): value for key, value in state.items()}
    unused = sorted(set(rename) - used)
    if unused:
        raise ParamsError(f"backbones.{name}.rename: no name in the file begins with {', '.join(unused)}")
    if len(made) != len(state):
        raise ParamsError(f"backbones.{name}.rename: two tensors of the file get the same name")
    return made


def under_a_head(trunk: dict[str, torch.Tensor], name: str, told: str) -> dict[str, torch.Tensor]:
    """The trunk with an untrained head, which nothing reads.

    Raises:
        PipelineError: more than the head is lacking; ``told`` says of what.
    """
    state = architecture(name, seed=0).state_dict()
    head = {key: value for key, value in state.items() if key not in trunk and not key.endswith(".num_batches_tracked")}
    if len(head) > 2 or not all(key.endswith((".weight", ".bias")) for key in head):
        raise PipelineError(
            f"backbones.{name}: {told} lacks more than its head ({', '.join(sorted(head)[:5])}); take one that has all "
            "layers"
        )
    return {**trunk, **head}


def read_study_model(path: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trunk of a model that ``finetune`` made, under an untrained head, and its card.

    Raises:
        PipelineError: it is not such a model, of this backbone, whole but for its head.
    """
    card_file = path.with_name(MODEL_CARD)
    if not card_file.is_file():
        raise PipelineError(f"backbones.{name}: {path} has no {MODEL_CARD} beside it, which says what it is")
    card = json.loads(card_file.read_text(encoding="utf-8"))
    if card["backbone"] != name:
        raise PipelineError(f"backbones.{name}: {path} is a {card['backbone']}")
    trunk = {key.removeprefix("trunk."): value for key, value in load_file(path).items() if key.startswith("trunk.")}
    return under_a_head(trunk, name, str(path)), card


def random_state(name: str) -> dict[str, torch.Tensor]:
    """Random weights to stand in for pretrained ones, with batch-norm statistics taken from noise images.

    Fresh batch-norm layers assume mean 0 and variance 1, which no deep random network has: its features would
    vanish in evaluation mode, and a head fitted on them would explode once training begins.
    """
    model = architecture(name, seed=0)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return model.state_dict()
    for module in layers:
        module.momentum = None  # a plain average over the batches
    size_px = INCEPTION_PX if name == "inception_v3" else 96
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # dropout
        model.train()
        for _ in range(4):
            model(torch.randn(16, 3, size_px, size_px, generator=generator))
    return model.state_dict()


def fetch(name: str, params: BackboneParams, *, base: Path, given: Path | None, allow_random: bool, out: Path) -> str:
    """Bring one backbone's weights to ``out``; returns what they are, for a person."""
    spec = input_spec(name)
    card: dict[str, Any] = {
        "backbone": name,
        "input": {"mean": spec.mean, "std": spec.std},
        "request": params.request(),
    }
    if params.file is not None:
        path = base / params.file
        if not path.is_file():
            raise PipelineError(f"backbones.{name}.file: {params.file} is not there")
        found = file_sha256(path)
        if found != params.sha256:
            raise PipelineError(f"backbones.{name}.sha256 is {params.sha256}, but {params.file} has {found}")
        origin = "imagenet" if params.pretrained_on == "imagenet" else "file"
        licence = params.licence
        if path.suffix == ".safetensors":
            state, made = read_study_model(path, name)
            licence = licence or made["weights_licence"]
        else:
            state = renamed(read_state(path, name), params.rename, name)
            state = state if params.head else under_a_head(state, name, params.file)
        card |= {"initialisation": origin, "name": params.description, "sha256": found, "licence": licence}
    else:
        enum = get_model_weights(name)
        if params.weights not in enum.__members__:
            known = list(enum.__members__)
            raise ParamsError(f"backbones.{name}.weights: no {params.weights}{nearest(str(params.weights), known)}")
        entry = enum[params.weights]
        transforms = entry.transforms()
        if InputSpec(tuple(transforms.mean), tuple(transforms.std)) != spec:
            raise ParamsError(
                f"backbones.{name}.weights: {params.weights} wants a normalisation of its own, which is not supported"
            )
        download = out / "download.pth"
        found_file = find_torchvision_file(name, entry, given, download)
        if found_file is None:
            if not allow_random:
                raise PipelineError(
                    f"backbones.{name}: no weights. Put {Path(urlparse(entry.url).path).name} (from {entry.url}) "
                    f"into a folder and run `python -m pipeline.commands.fetch_weights --from FOLDER`"
                )
            card |= {"initialisation": "random", "name": "random initialisation, not ImageNet", "sha256": None}
            state = random_state(name)
        else:
            card |= {"initialisation": "imagenet", "name": str(entry), "sha256": file_sha256(found_file)}
            state = read_state(found_file, name)
            download.unlink(missing_ok=True)
    model = architecture(name, seed=0)
    load_state(model, state, name)
    save_weights(model.state_dict(), card, out)
    return str(card["name"])


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--out", type=Path, default=Path("data/weights"), help="default: data/weights")
    arguments.add_argument("--from", dest="given", type=Path, help="a folder with torchvision's weight files")
    arguments.add_argument("--again", action="store_true", help="fetch even what is there")
    args = arguments.parse_args()
    names = load_names("backbones", args.params)
    allow_random = load_params(WeightsParams, "weights", args.params).allow_random
    cli.prune(args.out, names)
    for name in names:
        params = load_params(BackboneParams, f"backbones.{name}", args.params)
        card = args.out / name / WEIGHTS_CARD
        if card.is_file() and not args.again:
            known = json.loads(card.read_text(encoding="utf-8"))
            if known["request"] == params.request() and (known["initialisation"] != "random" or allow_random):
                print(f"{name}: {known['name']} (there already)")
                continue
        shutil.rmtree(args.out / name, ignore_errors=True)
        told = fetch(
            name, params, base=args.params.parent, given=args.given, allow_random=allow_random, out=args.out / name
        )
        print(f"{name}: {told}")


if __name__ == "__main__":
    cli.run(main)
