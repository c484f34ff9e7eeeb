import cv2
import numpy as np
import pytest

from mcis.imaging import phantom, scan
from mcis.organs import ORGANS, organ_named

CLASSES = [(organ.name, label) for organ in ORGANS for label in range(len(organ.classes))]
LESIONS = [(name, label) for name, label in CLASSES if organ_named(name).is_lesion(label)]
SMALL = (96, 112)


@pytest.mark.parametrize(("organ", "label"), CLASSES)
def test_same_arguments_same_bytes_and_other_seed_other_scan(organ, label):
    first, again, other = (phantom.make_phantom(organ, label, seed, SMALL) for seed in (7, 7, 8))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize(("organ", "label"), CLASSES)
def test_types_ranges_and_mask_over_many_seeds(organ, label):
    for seed in range(40):
        made = phantom.make_phantom(organ, label, seed, SMALL)
        assert (made.organ, made.label) == (organ, label)
        assert made.image.dtype == np.uint8
        assert made.image.shape == (*SMALL, 3)
        assert (made.image.min(), made.image.max()) == (0, 255)
        assert (made.image == made.image[..., :1]).all()
        assert made.mask.dtype == np.uint8
        assert made.mask.shape == (*SMALL, 1)
        assert set(np.unique(made.mask)) == ({0, 1} if (organ, label) in LESIONS else {0})


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_lesion_is_one_region_inside_the_picture_and_of_sensible_size(organ, label):
    for seed in range(40):
        mask = phantom.make_phantom(organ, label, seed, SMALL).mask[..., 0]
        edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
        assert not any(edge.any() for edge in edges), seed
        assert cv2.connectedComponents(mask, connectivity=4)[0] == 2, seed
        assert 0.003 < mask.mean() < 0.15, seed


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_lesion_can_be_told_from_what_lies_around_it(organ, label):
    contrasts = []
    for seed in range(20):
        made = phantom.make_phantom(organ, label, seed, SMALL)
        mask = made.mask[..., 0]
        around = cv2.dilate(mask, np.ones((13, 13), np.uint8)) - mask
        grey = made.image[..., 0].astype(float)
        contrasts.append(abs(grey[mask > 0].mean() - grey[around > 0].mean()))
    assert np.median(contrasts) > 15


def test_benign_masses_lie_wide_and_malignant_ones_stand_tall():
    def median_ratio(label):
        masks = (phantom.make_phantom("breast", label, seed, (96, 96)).mask[..., 0] for seed in range(30))
        boxes = [cv2.boundingRect(mask) for mask in masks]
        return np.median([width / height for _, _, width, height in boxes])

    classes = organ_named("breast").classes
    assert median_ratio(classes.index("benign")) > 1.3
    assert median_ratio(classes.index("malignant")) < 1.0


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_size_is_drawn_without_the_label(organ):
    shapes = [
        [phantom.make_phantom(organ.name, label, seed).image.shape[:2] for seed in range(6)]
        for label in range(len(organ.classes))
    ]
    assert all(row == shapes[0] for row in shapes)
    assert len(set(shapes[0])) > 1
    assert set(shapes[0]) <= set(phantom.SIZES)


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_frame_stream_does_not_see_the_label(organ, monkeypatch):
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
def test_any_size_from_the_smallest(organ, label, size):
    made = phantom.make_phantom(organ, label, 0, size)
    assert made.image.shape == (*size, 3)
    assert made.mask.any() == ((organ, label) in LESIONS)


def test_every_class_of_every_organ_in_each_round():
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
def test_wrong_arguments_are_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom.make_phantom(*arguments)


def test_examples_read_back_as_the_same_pictures(tmp_path):
    rounds = 3
    paths = phantom.write_examples(tmp_path / "new" / "folder", per_class=rounds, seed=1)
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    raw = []
    for path, made in zip(paths, phantom.make_phantoms(rounds, seed=1), strict=True):
        assert path.name.startswith(f"{made.organ}_{organ_named(made.organ).classes[made.label]}_0")
        image = scan.read(path).image
        off = np.abs(image.astype(int) - made.image)
        assert off.mean() < 4 if path.suffix == ".jpg" else off.max() == 0, path
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        raw.append((path.suffix, stored.dtype.itemsize * 8, 1 if stored.ndim == 2 else stored.shape[2]))
    wanted = {(".png", 8, 1), (".png", 8, 3), (".png", 8, 4), (".png", 16, 1)}
    assert set(raw) == wanted | {(".jpg", 8, 3), (".tif", 8, 3), (".bmp", 8, 3)}
