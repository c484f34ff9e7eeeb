import cv2
import numpy as np
import pytest
from mcis_datasets.mcis_scans import duplicates


def texture(seed, height=200, width=240):
    """Noise at several scales, uint8 (H, W, 3): an image without near-duplicate."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), s) * s for s in (2, 4, 8, 16)]
    total = np.sum(layers, axis=0)
    grey = 10 + 210 * (total - total.min()) / np.ptp(total)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def write(image, text):
    image = image.copy()
    cv2.putText(image, text, (20, 180), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    cv2.line(image, (60, 60), (150, 110), (255, 255, 0), 1)
    return image


def shift(image):
    return np.roll(image, (14, -11), axis=(0, 1))


def frame(image):
    return cv2.copyMakeBorder(image, 20, 30, 40, 10, cv2.BORDER_CONSTANT)


def turn(image):
    matrix = cv2.getRotationMatrix2D((120, 100), 20, 0.9)
    return cv2.warpAffine(image, matrix, (240, 200))


def encode(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)


def smooth(image):
    return cv2.GaussianBlur(image, (0, 0), 3)


def sharpen(image):
    image = image.astype(np.float32)
    return np.clip(image + 3 * (image - cv2.GaussianBlur(image, (0, 0), 1.5)), 0, 255).astype(np.uint8)


def resize(width, height):
    return lambda image: cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


CHANGES = {
    "copy": np.copy,
    "shifted": shift,
    "cropped": lambda image: np.ascontiguousarray(image[30:170, 20:190]),
    "framed": frame,
    "smaller": resize(144, 120),
    "larger": resize(480, 400),
    "squared": resize(200, 200),
    "turned": turn,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "upside down": lambda image: np.ascontiguousarray(image[::-1]),
    "brighter": lambda image: np.clip(image * 1.3 + 20, 0, 255).astype(np.uint8),
    "smoothed": smooth,
    "sharpened": sharpen,
    "encoded": encode,
    "marked": lambda image: write(image, "LEFT 12:30"),
}


@pytest.fixture(scope="module")
def scans():
    """Scans of three images, one of them with all changes, and the image that each scan shows."""
    first = texture(0)
    images = [texture(1), first, *(change(first) for change in CHANGES.values()), shift(texture(1)), texture(2)]
    return images, [0, 1, *(1 for _ in CHANGES), 0, 2]


def test_near_duplicates_form_clusters(scans):
    images, shown = scans
    assert duplicates.find_clusters(images) == shown


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_each_change_gives_a_near_duplicate(change):
    assert duplicates.find_clusters([texture(0), texture(1), change(texture(0))]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("blind", "change"),
    [
        ("_votes", lambda image: np.ascontiguousarray(smooth(image)[:, ::-1])),  # smoothing removes the voters
        ("_thumbnail_correlation", turn),  # rotation changes the thumbnails
    ],
)
def test_each_ranking_finds_candidates_that_the_other_misses(monkeypatch, blind, change):
    monkeypatch.setattr(duplicates, blind, lambda features: np.zeros((len(features), len(features)), np.float32))
    others = [texture(seed) for seed in range(1, 9)]
    assert duplicates.find_clusters([texture(0), *others, change(texture(0))]) == [*range(9), 0]


def test_partition_does_not_depend_on_order(scans):
    images, shown = scans
    order = np.random.default_rng(0).permutation(len(images))
    seen: dict[int, int] = {}
    expected = [seen.setdefault(shown[i], len(seen)) for i in order]
    assert duplicates.find_clusters([images[i] for i in order]) == expected


def test_common_text_and_border_make_no_duplicates():
    images = [frame(write(texture(seed), "RIGHT BREAST")) for seed in range(6)]
    assert duplicates.find_clusters(images) == list(range(6))
    assert duplicates.find_clusters(images, duplicates.SAME_SWEEP) == list(range(6))


def test_images_without_content():
    black, grey = np.zeros((60, 80, 3), np.uint8), np.full((60, 80, 3), 90, np.uint8)
    tiny = np.zeros((3, 5, 3), np.uint8)
    assert duplicates.find_clusters([black, grey, tiny, texture(0), black]) == [0, 1, 2, 3, 0]
    assert duplicates.find_clusters([]) == []
    assert duplicates.find_clusters([black]) == [0]


def test_links_between_two_sets(scans):
    images, _ = scans
    others = [texture(7), *(change(texture(0)) for change in CHANGES.values()), texture(1), texture(8)]
    groups = ["a", *("b" for _ in CHANGES), "c", "d"]
    none, one, linked = duplicates.find_links([texture(9), texture(1), texture(0)], others, groups)
    assert (none, one) == ([], [len(CHANGES) + 1])
    assert len(linked) == 1 and groups[linked[0]] == "b"  # one link into a group is enough
    found = duplicates.find_links(images, [texture(0), texture(1)], ["x", "y"])
    assert found == [[1], [0], *([0] for _ in CHANGES), [1], []]
    assert duplicates.find_links([], others, groups) == [] and duplicates.find_links([texture(0)], [], []) == [[]]


def test_a_large_group_hides_no_other():
    half, rest = texture(0), texture(1)
    both = np.concatenate([half, rest], axis=1)  # shows two images
    copies = [encode(np.clip(half * (1 - 0.02 * k), 0, 255).astype(np.uint8)) for k in range(12)]
    others = [*copies, rest]
    (linked,) = duplicates.find_links([both], others, ["many"] * len(copies) + ["one"])
    assert {("many" if j < len(copies) else "one") for j in linked} == {"many", "one"} and len(linked) == 2
