"""The linear probe on real images with real ImageNet weights, beside torchvision and scikit-learn used plainly."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.transforms.functional import normalize

from pipeline.training.feed import Dataset
from pipeline.training.loop import predict_logits
from pipeline.transfer import linear_probe

SIZE = 96
PENALTY = 0.01


def ct(shared):
    """Soft-tissue window by hand."""
    for vendor in ("siemens", "ge"):
        folder = shared / "data/ct_contrast" / vendor
        for row in csv.DictReader((folder / "labels.csv").read_text().splitlines()):
            header = pydicom.dcmread(folder / row["file"])
            units = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
            yield np.clip((units + 160) / 400, 0, 1) * 255, int(row["contrast"])


def chest(shared):
    """The first 160 radiographs."""
    folder = shared / "data/chestxray14_subset"
    for row in list(csv.DictReader((folder / "Data_Entry_2017_v2020.csv").read_text().splitlines()))[:160]:
        image = cv2.imread(str(folder / "images" / row["Image Index"]), cv2.IMREAD_GRAYSCALE)
        yield image.astype(np.float64), int("Pneumonia" in row["Finding Labels"])


@pytest.mark.parametrize("source", [ct, chest])
def test_logits_are_those_of_scikit_learn_on_torchvisions_features(shared: Path, source):
    images, labels = zip(*source(shared), strict=True)
    pixels = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for image in images])
    pixels = np.rint(pixels).astype(np.uint8)
    labels = np.array(labels)
    assert len(set(labels.tolist())) == 2
    train = np.arange(0, len(labels) * 2 // 3)
    rest = np.arange(len(train), len(labels))
    state = torch.load(shared / "weights/mobilenet_v2_imagenet.pth", weights_only=True)

    # Plainly: torchvision's model and normalisation.
    theirs = mobilenet_v2()
    theirs.load_state_dict(state)
    theirs.classifier = torch.nn.Identity()
    transforms = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    unit = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1).float() / 255
    with torch.inference_mode():
        features = theirs.eval()(normalize(unit, transforms.mean, transforms.std)).numpy().astype(np.float64)

    # As the pipeline does it, from bytes to the logits of a model.
    data = Dataset(
        images=tiny.Memory(pixels),
        labels=labels[:, None].astype(np.float32),
        patients=np.arange(len(labels)).astype(str),
        train=train,
        pool=train,
        id_val=rest,
        image_ids=np.arange(len(labels)).astype(str),
    )
    engine = tiny.engine(data, "mobilenet_v2", weights=state)
    ours = linear_probe.fit(engine, linear_probe.Params(inverse_l2=[PENALTY]))
    # Rounding hangs on the layout in memory; where a feature hardly varies, standardising makes much of it. So the
    # features are compared as such, and the logits with scikit-learn's on the same ones.
    np.testing.assert_allclose(engine.features, features, atol=1e-4)
    features = engine.features.astype(np.float64)
    scaler = StandardScaler().fit(features[train])
    model = LogisticRegression(C=PENALTY, tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(features[train]), labels[train])
    expected = model.decision_function(scaler.transform(features))
    everything = np.arange(len(labels))
    logits = predict_logits(tiny.fabric(), ours, data.images, everything, 32, torch.contiguous_format)[:, 0]
    difference = np.abs(logits - expected).max()
    print(f"{source.__name__}: {len(labels)} images, largest difference of a logit {difference:.1e}")
    assert difference < 1e-4
