"""Near-duplicates: all that were planted are found, what is merely alike is not, and an exhaustive search agrees."""

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis import duplicates
from pipeline.analysis.duplicates import aligned_correlation, connected, find_duplicates, perceptual_hash


def picture(number, edge=96):
    """Smooth random structure, as (edge, edge) uint8."""
    coarse = np.random.default_rng(number).normal(0, 1, (12, 12)).astype(np.float32)
    smooth = cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(smooth, None, 10, 240, cv2.NORM_MINMAX).astype(np.uint8)


def shifted(image, right, down):
    matrix = np.float32([[1, 0, right], [0, 1, down]])
    return cv2.warpAffine(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def search(images, hamming=8, correlation=0.99):
    found = find_duplicates([str(image.tobytes()) for image in images], images.__getitem__, hamming, correlation)
    return {(row.first, row.second): row for row in found.itertuples()}


COPIES = {
    "same": lambda image: image.copy(),
    "JPEG": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0),
    "darker": lambda image: (image * 0.6 + 5).astype(np.uint8),
    "16 bits": lambda image: image.astype(np.uint16) * 257,
    "moved": lambda image: shifted(image, 1, 0),
    "moved by a fraction": lambda image: shifted(image, 0.6, -0.4),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_among_others(change):
    images = [picture(number) for number in range(12)]
    images.append(COPIES[change](images[4]))
    assert set(search(images)) == {(4, 12)}


def test_correlation_is_pearsons_and_the_hash_ignores_brightness_and_contrast():
    a, b = picture(1), picture(2)
    assert aligned_correlation(a, b) >= np.corrcoef(a.ravel(), b.ravel())[0, 1] - 1e-12
    assert aligned_correlation(a, a) == pytest.approx(1.0, abs=1e-12)
    before, moved = a.copy(), shifted(a, 4, -2)
    assert np.corrcoef(a.ravel(), moved.ravel())[0, 1] < 0.99 < aligned_correlation(a, moved)
    assert (a == before).all()
    small = cv2.resize(a, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    assert perceptual_hash(small) == perceptual_hash(small * 3 + 40)
    assert perceptual_hash(small) != perceptual_hash(cv2.resize(b, (32, 32)).astype(np.float32))


def test_images_without_contrast_are_nobodys_copy():
    flat = np.full((40, 40), 7, np.uint8)
    assert aligned_correlation(flat, flat) is None
    assert search([flat, flat.copy(), picture(1), np.zeros((40, 40), np.uint8)]) == {}
    assert search([]) == {}


def test_equal_pixels_are_paired_with_the_first():
    images = [picture(1), picture(2), picture(1), picture(1)]
    found = search(images)
    assert set(found) == {(0, 2), (0, 3)}
    assert {(row.hamming, row.correlation) for row in found.values()} == {(0, 1.0)}


def test_a_corner_that_agrees_is_no_copy():
    """The lower right quarter of one is the upper left of the other, the rest differs."""
    a, b = picture(1), picture(2)
    b[:40, :40] = a[-40:, -40:]
    assert aligned_correlation(a, b) < 0.9


def test_images_of_two_shapes_are_compared_where_both_are():
    a = picture(1)
    assert aligned_correlation(a, a[:90]) == pytest.approx(1.0)
    assert aligned_correlation(a, a[:20, :20]) in (None, pytest.approx(1.0))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 2**20 - 1), max_size=40),
    st.integers(0, 8),
    st.sampled_from([(3, 7), (64, 16), (1, 1)]),
)
def test_nomination_by_blocks_is_the_double_loop(hashes, most, block):
    alike = np.ones((len(hashes), 1024), np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ROWS", block[0])
        patch.setattr(duplicates, "_COLUMNS", block[1])
        found = list(duplicates._nominate(np.array(hashes, np.uint64), alike, most))
    wanted = [
        (i, j, (hashes[i] ^ hashes[j]).bit_count())
        for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if (hashes[i] ^ hashes[j]).bit_count() <= most
    ]  # fmt: skip
    assert sorted(found) == wanted


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_groups_are_the_transitive_closure(pairs):
    group = connected([a for a, _ in pairs], [b for _, b in pairs])
    reach = {name: {name} for pair in pairs for name in pair}
    for _ in reach:
        for a, b in pairs:
            reach[a] = reach[b] = reach[a] | reach[b]
            for name in reach[a]:
                reach[name] = reach[a]
    assert group.keys() == reach.keys()
    assert all((group[a] == group[b]) == (b in reach[a]) for a in group for b in group)


@pytest.fixture(scope="module")
def slices(shared):
    """The 100 CT slices (256, 256) in a soft-tissue window, and their patients."""
    images, patients = [], []
    for path in sorted((shared / "data/ct_contrast").glob("*/dicom/*.dcm")):
        read = pydicom.dcmread(path)
        values = read.pixel_array * float(read.RescaleSlope) + float(read.RescaleIntercept)
        grey = np.clip((values + 160) / 400 * 255, 0, 255).astype(np.uint8)
        images.append(cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA))
        patients.append(read.PatientID)
    return images, patients


def test_on_real_slices_exactly_what_an_exhaustive_search_finds(slices):
    images, patients = slices
    matrix = np.corrcoef([image.ravel() for image in images])
    wanted = set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(matrix > 0.99, 1))), strict=True))
    assert len(wanted) == 6
    assert all(patients[a] == patients[b] for a, b in wanted)
    assert set(search(images)) == wanted


def test_real_radiographs_are_alike_and_none_is_another_patients_copy(shared):
    paths = sorted((shared / "data/chestxray14_subset/images").glob("*.png"))[:300]
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    patients = [path.name.split("_")[0] for path in paths]

    def across(found):
        return {(a, b) for a, b in found if patients[a] != patients[b]}

    assert across(search(images, hamming=10, correlation=0.9)), "with a lower bar different people would be joined"
    assert across(search(images)) == set()
    patients.append("a copy")
    assert across(search([*images, shifted(images[5], 1, 1)])) == {(5, 300)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 50)])
def test_tiny_images_are_compared_too(shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert aligned_correlation(image, image) in (None, pytest.approx(1.0))
