"""Phantoms: types, lesions, and what must not reveal the class."""

import functools

import cv2
import numpy as np
import pytest

from mcis.imaging import image_files, phantom
from mcis.organs import ORGANS, organ_named

CLASSES = [(organ.name, label) for organ in ORGANS for label in range(len(organ.classes))]
LESIONS = [(name, label) for name, label in CLASSES if organ_named(name).is_lesion(label)]
SMALL = (96, 112)


@pytest.mark.parametrize(("organ", "label"), CLASSES)
def test_equal_arguments_give_equal_bytes_and_another_seed_another_scan(organ, label):
    first, again, other = (phantom.make_phantom(organ, label, seed, SMALL) for seed in (7, 7, 8))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


@functools.cache
def small_phantoms(organ, label):
    return [phantom.make_phantom(organ, label, seed, SMALL) for seed in range(30)]


@pytest.mark.parametrize(("organ", "label"), CLASSES)
def test_types_and_ranges_of_image_and_mask(organ, label):
    for made in small_phantoms(organ, label):
        assert (made.organ, made.label) == (organ, label)
        assert made.image.dtype == np.uint8
        assert made.image.shape == (*SMALL, 3)
        assert (made.image.min(), made.image.max()) == (0, 255)
        assert (made.image == made.image[..., :1]).all()
        assert made.mask.dtype == np.uint8
        assert made.mask.shape == (*SMALL, 1)
        assert set(np.unique(made.mask)) == ({0, 1} if (organ, label) in LESIONS else {0})


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_a_lesion_is_one_region_inside_the_image_of_plausible_size(organ, label):
    for seed, made in enumerate(small_phantoms(organ, label)):
        mask = made.mask[..., 0]
        edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert not any(edge.any() for edge in edges), seed
        assert cv2.connectedComponents(mask, connectivity=4)[0] == 2, seed
        assert 0.003 < mask.mean() < 0.15, seed


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_a_lesion_differs_in_brightness_from_its_surroundings(organ, label):
    contrasts = []
    for made in small_phantoms(organ, label):
        mask = made.mask[..., 0]
        around = cv2.dilate(mask, np.ones((13, 13), np.uint8)) - mask
        grey = made.image[..., 0].astype(float)
        contrasts.append(abs(grey[mask > 0].mean() - grey[around > 0].mean()))
    assert np.median(contrasts) > 15


def test_benign_masses_are_wide_and_malignant_ones_tall():
    def median_ratio(name):
        label = organ_named("breast").classes.index(name)
        boxes = [cv2.boundingRect(made.mask[..., 0]) for made in small_phantoms("breast", label)]
        return np.median([width / height for _, _, width, height in boxes])

    assert median_ratio("benign") > 1.3
    assert median_ratio("malignant") < 1.0


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_the_size_does_not_depend_on_the_label(organ, monkeypatch):
    def painter(frame, rng, kind, shape):
        return np.eye(*shape), np.zeros(shape, bool)

    monkeypatch.setitem(phantom.PAINTERS, organ.name, painter)
    shapes = [
        [phantom.make_phantom(organ.name, label, seed).image.shape[:2] for seed in range(6)]
        for label in range(len(organ.classes))
    ]
    assert all(row == shapes[0] for row in shapes)
    assert len(set(shapes[0])) > 1
    assert set(shapes[0]) <= set(phantom.SIZES)


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_the_frame_stream_does_not_depend_on_the_label(organ, monkeypatch):
    drawn = []

    def painter(frame, rng, kind, shape):
        drawn.append((frame.uniform(size=4).tolist(), rng.uniform(size=4).tolist()))
        return np.eye(*shape), np.zeros(shape, bool)

    monkeypatch.setitem(phantom.PAINTERS, organ.name, painter)
    for label in range(len(organ.classes)):
        phantom.make_phantom(organ.name, label, 3)
    frames, own = zip(*drawn, strict=True)
    assert all(frame == frames[0] for frame in frames)
    assert len({tuple(row) for row in own}) == len(organ.classes)


@pytest.mark.parametrize(("organ", "label"), CLASSES)
@pytest.mark.parametrize("size", [(32, 32), (32, 150), (150, 32), np.array([33, 47])])
def test_any_size_from_the_minimum_can_be_drawn(organ, label, size):
    made = phantom.make_phantom(organ, label, 0, size)
    assert made.image.shape == (*size, 3)
    assert made.mask.any() == ((organ, label) in LESIONS)


def test_each_round_has_every_class_of_every_organ(monkeypatch):
    monkeypatch.setattr(phantom, "SIZES", (SMALL,))
    assert set(phantom.PAINTERS) == {organ.name for organ in ORGANS}
    made = list(phantom.make_phantoms(2, seed=5))
    assert [(p.organ, p.label) for p in made] == CLASSES * 2
    assert len({p.image.tobytes() for p in made}) == len(made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("liver", 0, 0), "liver.*brain"),
        (("brain", 2, 0), r"2 for brain.*0 \(no_tumor\), 1 \(tumor\)"),
        (("brain", -1, 0), "-1 for brain"),
        (("brain", "tumor", 0), "'tumor' for brain"),
        (("brain", 0, -3), "-3.*0 or above"),
        (("brain", 0, 0, (31, 64)), r"\(31, 64\).*at least 32"),
    ],
)
def test_an_invalid_argument_is_an_error_that_says_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom.make_phantom(*arguments)


def test_written_examples_are_read_back_as_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "SIZES", (SMALL,))
    rounds = 3
    paths = phantom.write_examples(tmp_path / "new" / "folder", per_class=rounds, seed=1)
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    raw = []
    for path, made in zip(paths, phantom.make_phantoms(rounds, seed=1), strict=True):
        assert path.name.startswith(f"{made.organ}_{organ_named(made.organ).classes[made.label]}_0")
        image = image_files.read(path).image
        difference = np.abs(image.astype(int) - made.image)
        assert difference.mean() < 4 if path.suffix == ".jpg" else difference.max() == 0, path
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        raw.append((path.suffix, stored.dtype.itemsize * 8, 1 if stored.ndim == 2 else stored.shape[2]))
    wanted = {(".png", 8, 1), (".png", 8, 3), (".png", 8, 4), (".png", 16, 1)}
    assert set(raw) == wanted | {(".jpg", 8, 3), (".tif", 8, 3), (".bmp", 8, 3)}
