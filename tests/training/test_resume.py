"""A run that was killed goes on and ends in the same bytes; a frozen part is frozen, then too."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from pipeline.errors import PipelineError
from pipeline.training import loop
from pipeline.training.backbone import build
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.loop import Epoch, Plan, train

CPU = torch.device("cpu")


class KilledError(Exception):
    pass


class FragileFeed(ImageFeed):
    """Dies before the ``left``-th batch that is trained on."""

    left = 10**9

    def training(self, batches, epoch):
        for inputs in super().training(batches, epoch):
            if FragileFeed.left == 0:
                raise KilledError
            FragileFeed.left -= 1
            yield inputs


@pytest.fixture(autouse=True)
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_UNCHECKED", 1)
    monkeypatch.setattr(FragileFeed, "left", 10**9)


def bits(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def run(data, path=None, *, plan=None, dies_after=None, seconds=0.0, **changes):
    params = tiny.loop(epochs=3, batch_size=4, augment=AugmentParams(), **changes)
    # With dropout, whose draws a resumed run must repeat.
    model = build("mobilenet_v3_small", 1, seed=1, state=tiny.weights("mobilenet_v3_small"), image_shape=(1, 32, 32))
    FragileFeed.left = 10**9 if dies_after is None else dies_after
    rows = []
    curve = train(
        tiny.fabric(), model, data, params, plan or Plan(1e-3),
        feed=FragileFeed(data.images, CPU, torch.contiguous_format, params.augment, 1),
        findings=["opacity"], seed=1, layout=torch.contiguous_format, description="run",
        checkpoint=None if path is None else Checkpoint(path, seconds), on_epoch=rows.append,
    )  # fmt: skip
    assert [replace(row, kept=False) for row in curve] == rows
    return model, curve


def test_killed_before_any_step_of_any_epoch(tmp_path):
    data = tiny.dataset(num=20, num_val=8)  # 3 steps an epoch
    whole, curve = run(data)
    for step in range(9):
        path = tmp_path / f"{step}.pt"
        with pytest.raises(KilledError):
            run(data, path, dies_after=step)
        assert path.is_file() == (step > 0)
        again, resumed = run(data, path)
        assert bits(again) == bits(whole), step
        assert resumed == curve


def test_killed_again_and_again(tmp_path):
    data = tiny.dataset(num=20, num_val=8)
    whole, _ = run(data)
    deaths = 0
    while True:
        try:
            again, _ = run(data, tmp_path / "c.pt", dies_after=2)
            break
        except KilledError:
            deaths += 1
    assert deaths >= 4
    assert bits(again) == bits(whole)


def test_a_finished_phase_is_not_trained_again(tmp_path):
    data = tiny.dataset(num=20, num_val=8)
    whole, curve = run(data, tmp_path / "c.pt")
    again, known = run(data, tmp_path / "c.pt", dies_after=0)  # would die if it trained
    assert bits(again) == bits(whole)
    assert known == curve


def test_a_resume_that_forgot_the_optimiser_would_be_seen(tmp_path, monkeypatch):
    """The comparison above can fail: without AdamW's moments the weights end elsewhere."""
    data = tiny.dataset(num=20, num_val=8)
    whole, _ = run(data)
    with pytest.raises(KilledError):
        run(data, tmp_path / "c.pt", dies_after=5)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    state["optimiser"]["state"] = {}
    torch.save(state, tmp_path / "c.pt")
    again, _ = run(data, tmp_path / "c.pt")
    assert bits(again) != bits(whole)


def test_time_between_checkpoints_changes_what_is_lost_and_nothing_else(tmp_path):
    data = tiny.dataset(num=20, num_val=8)
    whole, _ = run(data)
    with pytest.raises(KilledError):
        run(data, tmp_path / "c.pt", dies_after=7, seconds=1e9)
    assert not (tmp_path / "c.pt").is_file()
    assert bits(run(data, tmp_path / "c.pt")[0]) == bits(whole)


def test_a_damaged_checkpoint_is_told(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(PipelineError, match=r"c\.pt is damaged .*; delete it and run again"):
        run(tiny.dataset(), tmp_path / "c.pt")


def test_early_stopping_is_resumed_too(tmp_path):
    data = tiny.dataset(num=20, num_val=8)
    labels = data.labels.copy()
    labels[data.id_val] = 1 - labels[data.id_val]  # the longer, the worse
    data = replace(data, labels=labels)
    plan = Plan(3e-3, epochs=12, patience=2)
    whole, curve = run(data, plan=plan)
    kept = next(row.epoch for row in curve if row.kept)
    assert len(curve) == kept + 3 < 12
    with pytest.raises(KilledError):
        run(data, tmp_path / "c.pt", plan=plan, dies_after=(kept + 1) * 3 + 1)
    again, resumed = run(data, tmp_path / "c.pt", plan=plan)
    assert resumed == curve
    assert bits(again) == bits(whole)


# --- frozen ------------------------------------------------------------------------------------------------------

HEAD_ALONE = Plan(1e-2, factor=lambda name: float(name.startswith("head.")))


def trunk(model):
    return {key: value for key, value in bits(model).items() if key.startswith("trunk.")}


def test_a_frozen_trunk_is_frozen_to_the_bit_and_after_a_resume(tmp_path):
    """Running statistics and counters of batch-norm included."""
    data = tiny.dataset(num=20, num_val=8)
    before = trunk(build("mobilenet_v3_small", 1, seed=1, state=tiny.weights("mobilenet_v3_small"),
                         image_shape=(1, 32, 32)))  # fmt: skip
    assert any("running_mean" in key for key in before)
    assert any("num_batches_tracked" in key for key in before)
    whole, _ = run(data, plan=HEAD_ALONE)
    assert trunk(whole) == before
    with pytest.raises(KilledError):
        run(data, tmp_path / "c.pt", plan=HEAD_ALONE, dies_after=4)
    again, _ = run(data, tmp_path / "c.pt", plan=HEAD_ALONE)
    assert trunk(again) == before
    assert bits(again) == bits(whole)
    start = build("mobilenet_v3_small", 1, seed=1, state=tiny.weights("mobilenet_v3_small"))
    assert not torch.equal(whole.head.weight, start.head.weight)


def test_the_known_fault_would_be_seen(monkeypatch):
    """Training mode for all, as callbacks set it that only stop gradients: the statistics move."""
    data = tiny.dataset(num=20, num_val=8)
    before = trunk(build("mobilenet_v3_small", 1, seed=1, state=tiny.weights("mobilenet_v3_small")))
    monkeypatch.setattr(loop, "set_modes", lambda model, _params: model.train())
    whole, _ = run(data, plan=HEAD_ALONE)
    moved = {key for key, value in trunk(whole).items() if value != before[key]}
    assert moved
    assert all("running" in key or "num_batches" in key for key in moved)


def test_frozen_batch_norm_keeps_its_statistics_while_all_weights_train():
    data = tiny.dataset(num=20, num_val=8)
    before = build("mobilenet_v3_small", 1, seed=1, state=tiny.weights("mobilenet_v3_small"))
    model, _ = run(data, batch_norm="frozen")
    same = {key for key, value in bits(model).items() if value == bits(before)[key]}
    statistics = {key for key in bits(model) if "running" in key or "num_batches" in key}
    assert statistics <= same
    assert not any(key.endswith(".weight") for key in same)


def test_what_was_frozen_can_be_trained_afterwards():
    data = tiny.dataset(num=20, num_val=8)
    model, _ = run(data, plan=HEAD_ALONE)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradual_unfreezing_opens_from_the_output(monkeypatch):
    """What each phase may change, bit by bit."""
    data = tiny.dataset(num=20, num_val=8)
    module = importlib.import_module("pipeline.transfer.gradual_unfreeze")
    engine = tiny.engine(data, "resnet18", loop=tiny.loop(epochs=3, batch_size=6))
    seen = []
    real = type(engine).train

    def spy(self, model, plan):
        before = bits(model)
        loss = real(self, model, plan)
        seen.append({key for key, value in bits(model).items() if value != before[key]})
        return loss

    monkeypatch.setattr(type(engine), "train", spy)
    module.fit(engine, module.Params(learning_rate=1e-3, groups=2))
    head, upper, everything = seen
    assert head == {"head.weight", "head.bias"}
    assert any(key.startswith("trunk.layer4") for key in upper)
    assert not any(key.startswith(("trunk.conv1", "trunk.bn1", "trunk.layer1")) for key in upper)
    assert "trunk.conv1.weight" in everything
    assert {row.phase for row in engine.curves} == {"unfreeze 0", "unfreeze 1", "unfreeze 2"}


def test_layer_decay_gives_each_block_its_rate():
    data = tiny.dataset(num=20, num_val=8)
    engine = tiny.engine(data, "resnet18")
    model = engine.pretrained()
    parts = engine.blocks(model)
    assert parts[-1] == ["head.weight", "head.bias"]
    assert parts[0] == ["trunk.conv1.weight"]
    assert sorted(name for part in parts for name in part) == sorted(name for name, _ in model.named_parameters())
    depth = {name: d for d, names in enumerate(reversed(parts)) for name in names}
    groups = loop.parameter_groups(model, Plan(0.1, factor=lambda name: 0.5 ** depth[name]))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert named["head.weight"] == 0.1
    assert named["trunk.conv1.weight"] == pytest.approx(0.1 * 0.5 ** (len(parts) - 1))
    assert named["trunk.layer4.1.conv2.weight"] == pytest.approx(0.05)


def test_l2_sp_draws_back_to_the_start():
    """With a huge alpha the trunk stays; its gradient is alpha (w - w0), by hand."""
    data = tiny.dataset(num=20, num_val=8)
    module = importlib.import_module("pipeline.transfer.l2_sp")

    def distance(alpha):
        engine = tiny.engine(data, loop=tiny.loop(epochs=4, batch_size=6, clip_norm=1e9))
        start = engine.pretrained()
        model = module.fit(engine, module.Params(learning_rate=1e-3, alpha=alpha, beta=0.0))
        first = dict(start.named_parameters())
        return float(sum(((v - first[n]) ** 2).sum() for n, v in model.named_parameters() if "trunk" in n).detach())

    assert distance(1e4) < 0.3 * distance(0.0)


def test_epochs_of_a_curve_are_told_as_they_end(tmp_path):
    data = tiny.dataset(num=20, num_val=8)
    told: list[Epoch] = []
    params = tiny.loop(epochs=2, batch_size=4)
    train(
        tiny.fabric(), build(tiny.BACKBONE, 1, seed=1, state=None), data, params, Plan(1e-3),
        feed=ImageFeed(data.images, CPU, torch.contiguous_format, params.augment, 1), findings=["opacity"], seed=1,
        layout=torch.contiguous_format, description="run", on_epoch=told.append,
    )  # fmt: skip
    assert [row.epoch for row in told] == [0, 1]
    assert all(np.isfinite(row.train_loss) for row in told)
