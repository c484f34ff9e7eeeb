"""Painters of phantoms, one for each organ. No JAX.

Two random streams draw a phantom. `frame` depends on the organ alone and draws what must not reveal the class: image
size, sequence, gain, callipers, text. `rng` draws anatomy and lesion. So for one seed all classes have the same frame.
"""

import math

import cv2
import numpy as np

# Brightness of tissues by MRI sequence; a lesion is solid, or a rim around a core.
TISSUES = ("scalp", "marrow", "fluid", "grey", "white", "vessel", "oedema", "solid", "rim", "core")
SEQUENCES = (
    (0.90, 0.35, 0.12, 0.45, 0.66, 0.20, 0.40, 0.27, 0.48, 0.20),  # T1
    (0.85, 0.30, 0.10, 0.38, 0.50, 0.90, 0.32, 0.88, 0.95, 0.18),  # T1 with contrast agent
    (0.50, 0.15, 0.95, 0.50, 0.34, 0.05, 0.70, 0.82, 0.52, 0.97),  # T2
    (0.60, 0.15, 0.06, 0.50, 0.40, 0.15, 0.64, 0.88, 0.82, 0.35),  # FLAIR
)

Rng = np.random.Generator
Array = np.ndarray


def _smooth(rng: Rng, shape: tuple[int, int], rows: int, cols: int) -> Array:
    """Smooth noise of about unit variance, float32 `shape`, with about `rows` x `cols` bumps."""
    grid = rng.standard_normal((rows, cols), dtype=np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * 1.25


def _curved(rng: Rng, rows: int, cols: int, x: Array, y: Array) -> Array:
    """Smooth noise at curved coordinates (x, y), in bumps; periodic with `cols` and `rows`."""
    grid = rng.standard_normal((rows, cols), dtype=np.float32)
    wrapped = cv2.copyMakeBorder(grid, 2, 2, 2, 2, cv2.BORDER_WRAP)
    fine = cv2.resize(wrapped, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)  # remap itself is only linear
    return cv2.remap(fine, (x % cols + 2) * 8 - 0.5, (y % rows + 2) * 8 - 0.5, cv2.INTER_LINEAR) * 1.25


def _line_distance(field: Array) -> Array:
    """Distance in pixels to the zero lines of `field`, to first order: |f| / |grad f|."""
    slope = cv2.magnitude(cv2.Sobel(field, cv2.CV_32F, 1, 0), cv2.Sobel(field, cv2.CV_32F, 0, 1)) / 8
    return np.abs(field) / np.maximum(slope, 1e-3)


def _soft(x: Array) -> Array:
    """0 below -1, 1 above 1, linear between: of a distance in pixels, an edge two pixels wide."""
    return np.clip(x * 0.5 + 0.5, 0, 1)


def _bell(x: Array) -> Array:
    return np.exp(-(x * x))


def _mix(below: Array, above: Array | float, share: Array) -> Array:
    return below + (above - below) * share


def _blob(rng: Rng, x: Array, y: Array, waves: int, rough: float, warp: float = 0.0, bumps: int = 1) -> Array:
    """Level of a random star-shaped region around the origin, then warped: below 1 is inside."""
    angle = cv2.phase(x, y)
    outline = np.ones_like(x)
    for k in range(2, waves + 2):
        outline += rough * rng.normal() / k * np.cos(k * angle + rng.uniform(0, math.tau))
    return cv2.magnitude(x, y) / np.maximum(outline, 0.35) * (1 + warp * _smooth(rng, x.shape, bumps, bumps))


def _in_one_piece(level: Array) -> Array:
    """Keep only the largest region below 1, so that a lesion is one region."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats((level <= 1).astype(np.uint8), connectivity=4)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.where((pieces > 0) & (pieces != largest), np.float32(1.5), level)


def _paint_brain(frame: Rng, rng: Rng, kind: str, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Axial head MRI: float (H, W) in [0, 1] and the tumour's bool (H, W). The unit of length is half a head."""
    h, w = shape
    tone = dict(zip(TISSUES, SEQUENCES[frame.integers(len(SEQUENCES))], strict=True))
    tone = {name: value * frame.uniform(0.88, 1.12) for name, value in tone.items()}
    bright, gamma, noise, bias = frame.uniform((0.95, 0.85, 0.008, 0.05), (1.25, 1.2, 0.035, 0.2)).tolist()

    # Head coordinates: u to the side, v to the back, `deep` from the brain's surface inwards.
    breadth, turn, (du, dv) = rng.uniform(0.74, 0.86), rng.normal(0, 0.07), rng.uniform(-0.03, 0.03, 2).tolist()
    px = rng.uniform(0.8, 0.96) * min(h / 2, w / 2 / breadth)  # pixels per unit
    x, y = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5 - n / 2) / px for n in (w, h)))
    u0, v0 = math.cos(turn) * x + math.sin(turn) * y - du, math.cos(turn) * y - math.sin(turn) * x - dv
    egg = u0 / (breadth * (1 + rng.uniform(0.02, 0.12) * v0))
    depth = 0.92 * (1 - _blob(rng, egg, v0, 3, 0.012))
    scalp, bone, gap = rng.uniform((0.04, 0.05, 0.012), (0.09, 0.075, 0.035)).tolist()
    wobble = 1 + 0.11 * _smooth(rng, shape, 5, 5)
    deep = depth - (scalp + bone + gap) * wobble
    brain = _soft(deep * px)

    # The tumour displaces tissue away from its centre.
    has_tumor = kind == "tumor"
    share = math.exp(rng.uniform(math.log(0.022), math.log(0.17)))
    radius, where, far = math.sqrt(share * breadth * 0.6), rng.uniform(0, math.tau), rng.uniform(0.2, 0.6)
    tu, tv = u0 - breadth * far * math.cos(where), v0 - far * math.sin(where)
    push = 0.35 * has_tumor * rng.uniform() * np.exp((tu * tu + tv * tv) / (-2 * (1.3 * radius) ** 2))
    u = u0 - push * tu + 0.012 * _smooth(rng, shape, 6, 6)
    v = v0 - push * tv + 0.012 * _smooth(rng, shape, 6, 6)

    height, age = rng.uniform(size=2).tolist()  # from the deep nuclei to near the top; from narrow to wide fluid spaces
    sulci = _sulci(rng, cv2.phase(egg, v0) / math.tau, deep, np.abs(u), v, height, age, px)
    surface = np.maximum(sulci, 1 - brain)
    ventricle = _ventricles(rng, u, v, height, age, px)
    # Grey matter follows every surface with cortical thickness; the deep nuclei are next to the ventricles.
    away = cv2.distanceTransform((surface < 0.35).astype(np.uint8), cv2.DIST_L2, 3) / px
    cortex = _soft((rng.uniform(0.055, 0.08) * wobble - away) * 40)
    for nu, nv, ru, rv in ((0.15, 0.1, 0.1, 0.14), (0.3, -0.08, 0.07, 0.19), (0.16, -0.24, 0.06, 0.1)):
        nucleus = cv2.magnitude((np.abs(u) - nu) / ru, (v - nv) / rv)
        cortex = np.maximum(cortex, 0.7 * (height < 0.45) * _soft((1 - nucleus) * 4))

    tissue = tone["white"] + (tone["grey"] - tone["white"]) * cortex
    tissue = tissue * (1 + 0.03 * _smooth(rng, shape, 12, 12) + 0.03 * _smooth(rng, shape, 60, 60))
    if rng.uniform() < 0.4:  # spots of old age in the white matter, with and without a tumour: a distractor
        spots = _soft((_smooth(rng, shape, 34, 34) - 2.1) * 4) * (1 - cortex)
        tissue = _mix(tissue, tone["oedema"], spots * (np.abs(deep - 0.35) < 0.15))
    mask = np.zeros(shape, bool)
    if has_tumor:
        level = _blob(rng, tu, tv, int(rng.integers(2, 6)), rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.12), 14)
        inside = deep > 0.02
        values = level[inside]
        # The level set with the drawn share of the brain, so that tumours at the surface are not smaller.
        level /= np.partition(values, int(share * values.size))[int(share * values.size)]
        level = _in_one_piece(np.where(inside, level, np.float32(9)))
        mask = level <= 1
        swelling = 1 + rng.uniform(0.2, 0.7) + 0.12 * _smooth(rng, shape, 16, 16) - level
        tissue = _mix(tissue, tone["oedema"], rng.uniform(0.1, 0.9) * _soft(swelling * 6) * (1 - 0.6 * cortex))
        ripple = 0.07 * _smooth(rng, shape, 12, 12) + 0.05 * _smooth(rng, shape, 40, 40)
        inner = tone["solid"] * (1 + ripple * rng.uniform(0.3, 1.5))
        if rng.uniform() < 0.5:
            ring = np.maximum(_bell((level - 0.86 + ripple) / 0.14), (level > 0.86) * np.float32(0.7))
            inner = tone["core"] + (tone["rim"] - tone["core"]) * ring
        edge = _soft((1 - level) * (px * radius * rng.uniform(0.25, 1.0)))
        surface, ventricle = np.maximum(surface * (1 - edge), 1 - brain), ventricle * (1 - edge)
        tissue = _mix(tissue, inner, edge)

    in_bone = (depth / wobble - scalp) / bone
    image = tone["scalp"] * (1 + 0.08 * _smooth(rng, shape, 24, 24)) * _soft(depth * px)
    marrow = tone["marrow"] * rng.uniform() * _bell((in_bone - 0.5) / 0.22)
    image = _mix(image, 0.03 + marrow, _soft(in_bone * bone * px))
    image = _mix(image, tone["fluid"], _soft((in_bone - 1) * bone * px))
    image = _mix(image, tissue, brain)
    image = _mix(image, tone["fluid"], brain * np.maximum(surface, ventricle) * 0.95)
    sinus = cv2.magnitude(u0 * 1.2, v0 - (1 - scalp - bone - gap) * 0.97)
    image = _mix(image, tone["vessel"], _soft((0.035 - sinus) * px))
    image = cv2.GaussianBlur(image, (0, 0), max(0.5, px / 190)) * np.exp(bias * _smooth(rng, shape, 3, 3))
    speck = rng.standard_normal((2, h, w), dtype=np.float32) * noise
    image = cv2.magnitude(image + speck[0], speck[1]) - noise  # Rician noise without its offset
    return np.clip(image * bright, 0, 1) ** gamma, mask


def _sulci(rng: Rng, turn: Array, deep: Array, side: Array, v: Array, height: float, age: float, px: float) -> Array:
    """Fraction of fluid between the folds: zero lines of noise that is stretched inwards, and the median fissure."""
    shape = deep.shape
    folds, swirl = int(rng.integers(34, 44)), 0.45 * _smooth(rng, shape, 12, 12)
    line = _line_distance(_curved(rng, 6, folds, turn * folds + swirl, deep * 2.5 + 0.8 * swirl))
    sylvian = (1 - height) * np.exp(-((side - 0.6) ** 2 + (v + 0.1) ** 2) / 0.03)
    length = (0.2 + 0.12 * height + 0.08 * _smooth(rng, shape, 9, 9)) * (1 + 0.8 * sylvian)
    taper = np.clip(1.15 - deep / np.maximum(length, 0.05), 0, 1)
    wide = 0.001 + 0.01 * age * rng.uniform(0.5, 1.2) + 0.02 * age * np.exp(-np.maximum(deep, 0) / 0.03)
    # Near the top the fissure is complete; lower down the halves are joined between its front and its back.
    separate = 1.0 if height > 0.7 else _soft((np.abs(v + 0.05) - rng.uniform(0.38, 0.48)) * 20)
    fissure = _soft((0.003 + 0.01 * age - side) * px + 0.4) * separate
    return np.maximum(_soft(wide * px * taper + 0.2 - line) * np.sqrt(taper), fissure)


def _ventricles(rng: Rng, u: Array, v: Array, height: float, age: float, px: float) -> Array:
    """Fraction of ventricle: two arms that diverge to the back, low down a slit between them; none near the top."""
    share = np.zeros_like(v)
    if height > 0.75:
        return share
    bulk = rng.uniform(0.5, 1.0) * (0.75 + 0.6 * age) * (1.1 - 0.6 * height)
    for side in (-1, 1):
        size, t = bulk * rng.uniform(0.85, 1.15), (v + 0.05) / rng.uniform(0.34, 0.44)
        axis = 0.03 + 0.06 * size + 0.12 * t * t + 0.05 * t * np.abs(t)
        thick = 0.075 * size * np.sqrt(np.clip(1 - t * t, 0, 1)) * (1 - 0.55 * _bell((t - 0.15) / 0.3))
        share = np.maximum(share, _soft((thick - np.abs(side * u - axis)) * px * 0.8 - (t * t > 1)))
    third = _soft((0.016 * bulk - np.abs(u)) * px) * _soft((0.16 - np.abs(v)) * 20)
    return np.maximum(share, third * (height < 0.35))


def _paint_breast(frame: Rng, rng: Rng, kind: str, shape: tuple[int, int]) -> tuple[Array, Array]:
    """B-mode breast ultrasound: float (H, W) in [0, 1] and the mass's bool (H, W). Lengths in heights, echoes in dB."""
    h, w = shape
    decibels, looks, gain, slope = frame.uniform((44, 0.45, -6, 12), (56, 0.8, 3, 28)).tolist()
    x, y = np.meshgrid((np.arange(w, dtype=np.float32) + 0.5 - w / 2) / h, (np.arange(h, dtype=np.float32) + 0.5) / h)

    def bound(low: float, high: float, bend: float) -> Array:
        return rng.uniform(low, high) + bend * _smooth(rng, (1, w), 1, 3) + rng.normal(0, bend) * x[:1]

    skin, fat = bound(0.02, 0.06, 0.003), bound(0.12, 0.3, 0.02)
    gland = fat + np.abs(bound(0.18, 0.42, 0.022))
    muscle = gland + np.abs(bound(0.14, 0.26, 0.015))
    # Texture follows the layers: noise stretched sideways, in curved coordinates.
    along = y - 0.5 * (fat - fat.mean() + gland - gland.mean()) + 0.012 * _smooth(rng, shape, 5, 5)
    drift = 0.25 * _smooth(rng, shape, 6, 6)
    fine = _curved(rng, 64, 24, x * 12 + drift, along * 62 + 3 * drift)
    coarse = _curved(rng, 24, 16, x * 3.6 + drift, along * 17 + drift)
    septa = _bell(_line_distance(coarse) * 142 / h) * _soft(_smooth(rng, shape, 8, 8) * 2)

    fat_echo = -27 + 2.5 * fine + 11 * septa + 5 * np.maximum(fine - 0.8, 0)
    gland_echo = rng.uniform(-17, -11) + rng.uniform(2, 5) * fine + rng.uniform(1, 6) * coarse
    lobules = _soft((_smooth(rng, shape, 16, 6) + 0.3 * coarse - rng.uniform(1.0, 2.4)) * 2.5)
    gland_echo = _mix(gland_echo, fat_echo + 3, lobules)  # fat in the gland: a distractor in every class
    muscle_echo = -25 + 3 * fine + 11 * np.maximum(fine, 0) * _soft(coarse * 2)
    deep_echo = rng.uniform(-35, -26) + 3 * coarse + fine
    echo = _mix(-15 + 2 * fine, fat_echo, _soft((y - skin) * h * 0.5))
    for top, layer in ((fat, gland_echo), (gland, muscle_echo), (muscle, deep_echo)):
        echo = _mix(echo, layer, _soft((y - top) * h * 0.25))
    for border, strength, thick in ((0, 12, 0.008), (skin, 12, 0.006), (gland, 9, 0.008), (muscle, 8, 0.01)):
        echo += rng.uniform(0.3, 1.5) * strength * _bell((y - border) / thick) * (0.7 + 0.3 * fine)
    # Attenuation along the beam, dB per height. Poor contact shades whole columns, in every class.
    loss = np.full(shape, slope, np.float32)
    if rng.uniform() < 0.5:
        loss += 60 * _soft(_smooth(rng, (1, w), 1, 7) * 2 - 2) * _bell((y - rng.uniform(0.05, 0.4)) / 0.1)

    mask = np.zeros(shape, bool)
    if kind != "normal":
        benign = kind == "benign"
        level, ry = _mass(rng, benign, x, y, float(muscle.min()))
        mask = level <= 1
        patchy = 1.5 * fine + _smooth(rng, shape, 26, 26) * (1.5 if benign else 4.0)
        if benign:  # smooth, often with a capsule; low attenuation, so that tissue behind it is brighter
            inner, sharp, inner_loss = rng.uniform(-45, -28) + patchy, 0.6, rng.uniform(-75, -25)
            echo += rng.uniform(0, 9) * (0.6 + 0.4 * coarse) * _bell((level - 1.08) / 0.07)
        else:  # ragged, patchy, with calcifications and a halo; high attenuation, so that tissue behind it is darker
            inner, sharp, inner_loss = rng.uniform(-40, -27) + patchy, rng.uniform(0.2, 0.5), rng.uniform(10, 75)
            inner += 22 * _soft((_smooth(rng, shape, 70, 70) - 2.6) * 3)
            echo += rng.uniform(2, 7) * _bell((level - 1.3) / 0.25)
        echo = _mix(echo, inner, _soft((1 - level) * (ry * h * sharp)))
        loss += inner_loss * mask

    shade = cv2.GaussianBlur(np.cumsum(loss, axis=0, dtype=np.float32) / h, (0, 0), 0.018 * h)
    echo = np.clip(echo - shade + 0.75 * slope * y, -90, 20)  # time gain compensates three quarters of the common loss
    # Speckle: complex scatterers blurred by a spot that is wider across the beam than along it and grows with depth;
    # two looks are added, as in compound imaging.
    scatter = rng.standard_normal((h, w, 4), dtype=np.float32) * np.exp(echo * (math.log(10) / 20))[..., None]
    spot = h / 300
    near, far = (cv2.GaussianBlur(scatter, (0, 0), sigmaX=s * spot, sigmaY=0.75 * spot) for s in (1.2, 2.2))
    speckle = 10 * np.log10(np.square(_mix(near, far, y[..., None])).sum(axis=2) + 1e-8) + 7
    image = looks * speckle + (1 - looks) * cv2.GaussianBlur(echo, (0, 0), spot)
    return np.maximum(np.clip((image + decibels - 4 + gain) / decibels, 0, 1), _annotations(frame, shape)), mask


def _mass(rng: Rng, benign: bool, x: Array, y: Array, bottom: float) -> tuple[Array, float]:
    """Level of a mass (1 at its outline) above the depth `bottom` and inside the image; and half its height."""
    width = float(x[0, -1] - x[0, 0])
    ratio = rng.uniform(1.35, 2.3) if benign else rng.uniform(0.55, 0.9)  # width over height
    rx = min(math.sqrt(math.exp(rng.uniform(math.log(0.012), math.log(0.075))) / math.pi * ratio), 0.26 * width)
    ry = rx / ratio
    side, top = 0.5 * width - 1.3 * rx, max(0.08, 0.02 + 1.3 * ry)
    cx, cy = rng.uniform(-side, side), rng.uniform(top, max(top + 0.01, min(0.6, bottom - 0.9 * ry)))
    cos, sin = math.cos(tilt := rng.normal(0, 0.12)), math.sin(tilt)
    a, b = ((x - cx) * cos + (y - cy) * sin) / rx, ((y - cy) * cos - (x - cx) * sin) / ry
    waves, rough, warp = (4, 0.06, 0.02) if benign else (12, 0.3, rng.uniform(0.05, 0.16))
    margin = np.minimum(np.minimum(y, 1 - y), np.minimum(x - x[0, 0], x[0, -1] - x))
    level = _blob(rng, a, b, waves, rough, warp, 22) + np.maximum(0, 4 - 130 * margin)  # no spike may leave the image
    return _in_one_piece(level), ry


def _annotations(frame: Rng, shape: tuple[int, int]) -> Array:
    """Callipers and text burnt into an ultrasound, float32 [0, 1]: equally often and anywhere in every class."""
    h, w = shape
    ink = np.zeros(shape, np.uint8)
    callipers, text, ends = frame.uniform(), frame.uniform(), frame.uniform(0.15, 0.8, (2, 2))
    words = ("RT 10", "LT 3", "LEFT BREAST", "RIGHT BREAST")[frame.integers(4)]
    for cx, cy in ends if callipers < 0.25 else ():
        cv2.drawMarker(ink, (int(cx * w), int(cy * h)), 240, cv2.MARKER_CROSS, max(5, h // 40), 1)
    if text < 0.25:
        cv2.putText(ink, words, (int(0.1 * w), int(0.92 * h)), cv2.FONT_HERSHEY_SIMPLEX, h / 800, 230, 1, cv2.LINE_AA)
    return ink.astype(np.float32) / 255


PAINTERS = {"brain": _paint_brain, "breast": _paint_breast}
"""By organ: (frame, rng, class name, (H, W)) -> brightness float (H, W) in [0, 1], lesion bool (H, W)."""
