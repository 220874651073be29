"""fetch_weights: real ImageNet weights from a file, torchvision's path against a server on this machine."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import threading

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models import ShuffleNet_V2_X0_5_Weights, get_model, list_models
from torchvision.models import get_model_weights as weights_enum

from pipeline.commands import fetch_weights
from pipeline.commands.fetch_weights import BackboneParams, fetch, random_state, read_state, renamed
from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.training.backbone import build
from pipeline.training.checkpoints import file_sha256, load_weights, save_model

IMAGENET_FILE = "mobilenet_v2_imagenet.pth"
IMAGENET_SHA256 = "edbeb02c96913461660db3b3426acfa607a882feeec6e97b92a1245413e973a9"  # shared/weights/README.md
ENTRY = ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www on the loopback interface."""
    folder = tmp_path / "www"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as running:
        running.asked = []
        running.folder = folder
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_cache_and_no_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_file(folder, state=None, prefix=None):
    """A state dict under torchvision's kind of name: the first digits of its SHA-256 at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.pth"
    torch.save(dict(tiny.weights()) if state is None else state, raw)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    return raw.rename(folder / f"shufflenet-{prefix or digest[:8]}.pth")


def unreachable():
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def run(tmp_path, monkeypatch, *options, url=None, allow_random=False, backbones=None):
    if url is not None:
        monkeypatch.setattr(ENTRY.value, "url", url)
    params = tiny.write_params(
        tmp_path / "params.yaml",
        weights={"allow_random": allow_random},
        backbones=backbones or {tiny.BACKBONE: {"weights": "IMAGENET1K_V1"}},
    )
    tiny.call(monkeypatch, fetch_weights, *options, out=tmp_path / "weights", params=params)
    return tmp_path / "weights" / tiny.BACKBONE


def same(folder, state=None):
    loaded, card = load_weights(folder)
    state = tiny.weights() if state is None else state
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    return card


# --- a file of one's own -------------------------------------------------------------------------------------


def test_real_imagenet_weights_come_through_unchanged(tmp_path, monkeypatch, shared):
    shutil.copy(shared / "weights" / IMAGENET_FILE, tmp_path)
    entry = {
        "file": IMAGENET_FILE,
        "sha256": IMAGENET_SHA256,
        "description": "MobileNetV2, ImageNet-1k",
        "licence": "BSD-3",
    }
    run(tmp_path, monkeypatch, backbones={"mobilenet_v2": entry})
    original = torch.load(shared / "weights" / IMAGENET_FILE, weights_only=True)
    card = same(tmp_path / "weights/mobilenet_v2", original)
    assert card["initialisation"] == "file"
    assert card["name"] == "MobileNetV2, ImageNet-1k"
    assert card["sha256"] == IMAGENET_SHA256
    assert card["licence"] == "BSD-3"
    assert sorted(path.name for path in (tmp_path / "weights/mobilenet_v2").iterdir()) == [
        "weights.json",
        "weights.safetensors",
    ]
    # and are what our classifier then computes with: torchvision's model, its last layer's input
    theirs = get_model("mobilenet_v2", weights=None).eval()
    theirs.load_state_dict(original)
    seen = []
    theirs.classifier[1].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = build("mobilenet_v2", 1, seed=0, state=load_weights(tmp_path / "weights/mobilenet_v2")[0]).eval()
    with torch.no_grad():
        theirs((grey.repeat(1, 3, 1, 1) - mean) / std)
        torch.testing.assert_close(ours.features(grey), seen[0], atol=1e-5, rtol=1e-5)


def test_a_file_counts_as_imagenet_only_where_its_entry_says_so(tmp_path, monkeypatch):
    path = make_file(tmp_path)
    entry = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "description": "x"}
    for told, expected in (
        ({}, "file"),
        ({"pretrained_on": "other"}, "file"),
        ({"pretrained_on": "imagenet"}, "imagenet"),
    ):
        folder = run(tmp_path, monkeypatch, backbones={tiny.BACKBONE: entry | told})
        assert same(folder)["initialisation"] == expected


def test_a_file_with_another_hash_is_refused(tmp_path, monkeypatch, shared):
    shutil.copy(shared / "weights" / IMAGENET_FILE, tmp_path)
    entry = {"file": IMAGENET_FILE, "sha256": "0" * 64, "description": "x"}
    with pytest.raises(PipelineError, match=rf"mobilenet_v2.sha256 is 0+, but {IMAGENET_FILE} has {IMAGENET_SHA256}"):
        run(tmp_path, monkeypatch, backbones={"mobilenet_v2": entry})
    assert not (tmp_path / "weights/mobilenet_v2/weights.json").exists()


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    entry = {"file": "gone.pth", "sha256": "0" * 64, "description": "x"}
    with pytest.raises(PipelineError, match=rf"backbones.{tiny.BACKBONE}.file: gone.pth is not there"):
        run(tmp_path, monkeypatch, backbones={tiny.BACKBONE: entry})


def test_a_files_views_of_one_storage_are_saved_each_for_itself(tmp_path, monkeypatch):
    state = dict(tiny.weights())
    flat = torch.zeros(2048)
    state["fc.bias"], state["conv5.1.bias"] = flat[:1000], flat[:1024]
    path = make_file(tmp_path, state)
    entry = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "description": "x"}
    same(run(tmp_path, monkeypatch, backbones={tiny.BACKBONE: entry}), state)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"weights": "A", "file": "b", "sha256": "0" * 64, "description": "x"},
        {"file": "b"},
        {"file": "b", "sha256": "0" * 64},
        {"file": "b", "sha256": "0" * 8, "description": "x"},
        {"weights": "A", "head": False},
        {"file": "model.safetensors", "sha256": "0" * 64, "description": "x", "rename": {"a": "b"}},
        {"weights": "A", "url": "http://x"},
    ],
)
def test_an_entry_has_one_origin_and_says_what_it_is(bad):
    with pytest.raises(ValidationError):
        BackboneParams(**bad)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"a": Malicious(tmp_path / "owned")}, tmp_path / "bad.pth")
    with pytest.raises(PipelineError, match=r"backbones.x: .*bad.pth is no plain state dict"):
        read_state(tmp_path / "bad.pth", "x")
    assert not (tmp_path / "owned").exists()


def test_what_is_no_state_dict_is_refused(tmp_path):
    for index, thing in enumerate([torch.zeros(3), {"state_dict": {"a": torch.zeros(1)}}, [1, 2], {"epoch": 3}]):
        torch.save(thing, tmp_path / f"{index}.pth")
        with pytest.raises(PipelineError, match="is no plain state dict"):
            read_state(tmp_path / f"{index}.pth", "x")
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(PipelineError, match="is no plain state dict"):
        read_state(tmp_path / "text.pth", "x")


# --- torchvision's own files ---------------------------------------------------------------------------------


def test_a_download_with_the_right_hash(tmp_path, monkeypatch, server, capsys):
    path = make_file(server.folder)
    folder = run(tmp_path, monkeypatch, url=f"{server.url}/{path.name}")
    card = same(folder)
    assert card["initialisation"] == "imagenet"
    assert card["name"] == str(ENTRY) == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(file.name for file in folder.iterdir()) == ["weights.json", "weights.safetensors"]
    assert capsys.readouterr().out == f"{tiny.BACKBONE}: {ENTRY}\n"
    # a second run asks for nothing and touches nothing
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    run(tmp_path, monkeypatch)
    assert server.asked == [f"/{path.name}"]
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert "(there already)" in capsys.readouterr().out
    run(tmp_path, monkeypatch, "--again")
    assert len(server.asked) == 2


def test_a_download_with_the_wrong_hash_is_an_error_even_where_random_would_do(tmp_path, monkeypatch, server):
    path = make_file(server.folder, prefix="deadbeef")
    with pytest.raises(PipelineError, match=rf"the download of {path.name} does not have SHA-256 deadbeef"):
        run(tmp_path, monkeypatch, url=f"{server.url}/{path.name}", allow_random=True)
    assert list((tmp_path / "weights").rglob("*.*")) == []


def test_half_a_download_is_an_error(tmp_path, monkeypatch, server):
    path = make_file(server.folder)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(PipelineError, match="does not have SHA-256"):
        run(tmp_path, monkeypatch, url=f"{server.url}/{path.name}")


@pytest.mark.parametrize("kind", ["refused", "missing", "no_http"])
def test_no_network_is_told_with_the_file_and_the_command(tmp_path, monkeypatch, server, kind):
    stop = threading.Event()
    url = {"refused": unreachable, "missing": lambda: server.url}.get(kind, lambda: _no_http(stop))()
    with pytest.raises(PipelineError) as caught:
        run(tmp_path, monkeypatch, url=f"{url}/shufflenet-12345678.pth")
    stop.set()
    text = str(caught.value)
    assert f"backbones.{tiny.BACKBONE}: no weights. Put shufflenet-12345678.pth (from {url}/" in text
    assert "`python -m pipeline.commands.fetch_weights --from FOLDER`" in text
    assert list((tmp_path / "weights").rglob("*.*")) == []


def _no_http(stop):
    """Something that listens and does not speak HTTP."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listening:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail ready\r\n")

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_random_weights_say_so_and_are_not_taken_where_they_are_forbidden(tmp_path, monkeypatch, capsys):
    url = f"{unreachable()}/shufflenet-12345678.pth"
    folder = run(tmp_path, monkeypatch, url=url, allow_random=True)
    _, card = load_weights(folder)
    assert card["initialisation"] == "random"
    assert card["name"] == "random initialisation, not ImageNet"
    assert card["sha256"] is None
    assert "random initialisation, not ImageNet" in capsys.readouterr().out
    with pytest.raises(PipelineError, match="no weights"):
        run(tmp_path, monkeypatch, allow_random=False)


def test_random_weights_are_the_same_every_time_and_carry_a_signal():
    state, again = random_state(tiny.BACKBONE), random_state(tiny.BACKBONE)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    model = build(tiny.BACKBONE, 1, seed=0, state=state).eval()
    with torch.no_grad():
        features = model.features(torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert 1e-3 < float(features.std(dim=0).mean()) < 10


def test_torch_homes_cache_is_used(tmp_path, monkeypatch):
    path = make_file(tmp_path / "torch_home/hub/checkpoints")
    card = same(run(tmp_path, monkeypatch, url=f"{unreachable()}/{path.name}"))
    assert card["initialisation"] == "imagenet"
    assert path.is_file()


def test_a_broken_file_in_the_cache_is_an_error(tmp_path, monkeypatch):
    path = make_file(tmp_path / "torch_home/hub/checkpoints", prefix="deadbeef")
    with pytest.raises(PipelineError, match=rf"{path.name} has SHA-256 [0-9a-f]{{64}}, expected deadbeef"):
        run(tmp_path, monkeypatch, url=f"{unreachable()}/{path.name}", allow_random=True)


def test_a_folder_given_is_used_and_left_as_it_is(tmp_path, monkeypatch):
    path = make_file(tmp_path / "usb")
    before = path.read_bytes()
    card = same(run(tmp_path, monkeypatch, "--from", tmp_path / "usb", url=f"{unreachable()}/{path.name}"))
    assert card["initialisation"] == "imagenet"
    assert path.read_bytes() == before
    assert str(tmp_path) not in json.dumps(card)


def test_a_file_of_another_architecture_names_its_keys(tmp_path, monkeypatch):
    state = dict(tiny.weights())
    state["extra.weight"] = state.pop("conv1.0.weight")
    path = make_file(tmp_path / "usb", state)
    with pytest.raises(ParamsError, match=r"missing: conv1.0.weight \(1\); surplus: extra.weight \(1\)"):
        run(tmp_path, monkeypatch, "--from", tmp_path / "usb", url=f"{unreachable()}/{path.name}")


def numbered(name, layers):
    """A backbone as RadImageNet's authors save it: the children in a row under numbers, without the head."""
    model = tiny_model(name)
    state = nn.Sequential(*list(model.children())[:layers]).state_dict()
    return model, {f"backbone.{key}": value for key, value in state.items()}


def tiny_model(name):
    torch.manual_seed(3)
    return get_model(name, weights=None)


def test_a_file_whose_modules_have_numbers_is_renamed(tmp_path, monkeypatch):
    model, state = numbered("resnet18", 8)
    path = make_file(tmp_path, state)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "description": "as RadImageNet",
        "rename": {"backbone.0": "conv1", "backbone.1": "bn1"}
        | {f"backbone.{n + 3}": f"layer{n}" for n in range(1, 5)},
    }
    with pytest.raises(ParamsError, match=r"missing: fc.bias, fc.weight \(2\)"):
        run(tmp_path, monkeypatch, backbones={"resnet18": entry})
    run(tmp_path, monkeypatch, backbones={"resnet18": entry | {"head": False}})
    loaded, card = load_weights(tmp_path / "weights/resnet18")
    own = model.state_dict()
    assert all(torch.equal(loaded[key], own[key]) for key in own if not key.startswith("fc."))
    assert card["request"]["head"] is False
    grey = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = build("resnet18", 1, seed=0, state=loaded).trunk.eval()
    with torch.no_grad():
        ours = built(grey)
        theirs = torch.flatten(nn.Sequential(*list(model.eval().children())[:9])(grey), 1)
    torch.testing.assert_close(ours, theirs)


def test_a_file_without_its_head_must_hold_all_the_rest(tmp_path, monkeypatch):
    _, state = numbered("resnet18", 7)  # without layer4
    path = make_file(tmp_path, state)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "description": "x",
        "head": False,
        "rename": {"backbone.0": "conv1", "backbone.1": "bn1"}
        | {f"backbone.{n + 3}": f"layer{n}" for n in range(1, 4)},
    }
    with pytest.raises(PipelineError, match="lacks more than its head"):
        run(tmp_path, monkeypatch, backbones={"resnet18": entry})


def test_renaming_refuses_what_fits_nothing_and_what_collides():
    state = {"a.1.weight": torch.zeros(1), "a.10.weight": torch.ones(1)}
    assert set(renamed(state, {"a.1": "first", "a": "b"}, "x")) == {"first.weight", "b.10.weight"}
    with pytest.raises(ParamsError, match="begins with c"):
        renamed(state, {"c": "d"}, "x")
    with pytest.raises(ParamsError, match="same name"):
        renamed(state, {"a.1": "z", "a.10": "z"}, "x")


def test_a_card_of_before_renaming_is_still_what_was_asked_for():
    old = BackboneParams(weights="IMAGENET1K_V1")
    assert set(old.request()) == {"weights", "file", "sha256", "description", "pretrained_on", "licence"}


def test_densenets_old_names_of_modules_are_mended(tmp_path):
    """torchvision's files have `norm.1` where the model has `norm1`, and no counters of batch-norm."""
    new = get_model("densenet121", weights=None).state_dict()
    old = {}
    for key, value in new.items():
        if key.endswith("num_batches_tracked"):
            continue
        for layer in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{layer}{number}.", f".{layer}.{number}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    state = read_state(tmp_path / "old.pth", "densenet121")
    assert set(state) == {key for key in new if not key.endswith("num_batches_tracked")}
    model = build("densenet121", 1, seed=3, state=state)
    loaded = model.trunk.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if not key.startswith("classifier"))


def test_an_unknown_entry_is_told_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(ParamsError, match="no IMAGENET1K_V2; did you mean 'IMAGENET1K_V1'"):
        run(tmp_path, monkeypatch, backbones={tiny.BACKBONE: {"weights": "IMAGENET1K_V2"}})


def test_an_entry_with_a_normalisation_of_its_own_is_refused(tmp_path, monkeypatch):
    """VGG-16's features-only weights want inputs in [0, 255]; and their classifier is NaN."""
    with pytest.raises(ParamsError, match=r"backbones.vgg16.weights: IMAGENET1K_FEATURES wants a normalisation"):
        run(tmp_path, monkeypatch, backbones={"vgg16": {"weights": "IMAGENET1K_FEATURES"}})


def test_every_classifier_of_torchvision_names_its_files_by_their_hash():
    import torchvision.models as classifiers

    for name in list_models(module=classifiers):
        for entry in weights_enum(name):
            prefix = entry.url.rsplit("-", 1)[-1].removesuffix(".pth")
            assert len(prefix) >= 8, entry.url
            assert set(prefix) <= set("0123456789abcdef"), entry.url


def test_what_params_no_longer_name_is_deleted(tmp_path, monkeypatch):
    tiny.write_weights(tmp_path / "weights/resnet18")
    path = make_file(tmp_path / "usb")
    run(tmp_path, monkeypatch, "--from", tmp_path / "usb", url=f"{unreachable()}/{path.name}")
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == [tiny.BACKBONE]


def test_another_request_fetches_anew(tmp_path, monkeypatch):
    one, two = dict(tiny.weights(seed=1)), dict(tiny.weights(seed=2))
    for index, state in enumerate((one, two)):
        path = make_file(tmp_path / str(index), state)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"file": f"{index}/{path.name}", "sha256": digest, "description": "x"}
        same(run(tmp_path, monkeypatch, backbones={tiny.BACKBONE: entry}), state)


# --- another study's model ---------------------------------------------------------------------------------------


def study_model(tmp_path, **changes):
    """As `finetune` leaves it."""
    options = {"seed": 3, "state": dict(tiny.weights()), "image_shape": (1, 32, 32)}
    model = build(tiny.BACKBONE, 2, **{**options, **changes})
    card = {"backbone": tiny.BACKBONE, "weights_licence": "CC BY 4.0"}
    save_model(model, card, tmp_path / "other")
    path = tmp_path / "other/model.safetensors"
    return model, {"file": os.fspath(path), "sha256": file_sha256(path), "description": "two steps"}


def fetched(tmp_path, name, entry):
    params = BackboneParams(**entry)
    fetch(name, params, base=tmp_path, given=None, allow_random=False, out=tmp_path / "weights")
    return load_weights(tmp_path / "weights")


def test_a_studys_model_is_a_source_and_its_licence_goes_along(tmp_path):
    first, entry = study_model(tmp_path)
    state, card = fetched(tmp_path, tiny.BACKBONE, entry)
    assert card["licence"] == "CC BY 4.0"
    assert card["initialisation"] == "file"
    second = build(tiny.BACKBONE, 1, seed=0, state=state, image_shape=(1, 32, 32))
    for key, value in first.trunk.state_dict().items():
        assert torch.equal(second.trunk.state_dict()[key], value)
    assert fetched(tmp_path, tiny.BACKBONE, {**entry, "licence": "mine"})[1]["licence"] == "mine"


def test_a_studys_model_of_another_backbone_or_without_its_card_is_refused(tmp_path):
    _, entry = study_model(tmp_path)
    with pytest.raises(PipelineError, match=rf"is a {tiny.BACKBONE}"):
        fetched(tmp_path, "resnet18", entry)
    (tmp_path / "other/model.json").unlink()
    with pytest.raises(PipelineError, match=r"has no model\.json beside it"):
        fetched(tmp_path, tiny.BACKBONE, entry)


def test_a_model_without_its_last_layers_is_no_source(tmp_path):
    name = "mobilenet_v3_small"
    model = build(name, 1, seed=0, state=dict(tiny.weights(name)), pooled=True)
    save_model(model, {"backbone": name, "weights_licence": None}, tmp_path / "other")
    path = tmp_path / "other/model.safetensors"
    entry = {"file": os.fspath(path), "sha256": file_sha256(path), "description": "pooled"}
    with pytest.raises(PipelineError, match=r"lacks more than its head \(classifier"):
        fetched(tmp_path, name, entry)


def test_random_weights_of_a_transformer_have_no_statistics_to_take():
    state = random_state("vit_b_16")
    assert torch.equal(state["conv_proj.weight"], random_state("vit_b_16")["conv_proj.weight"])
