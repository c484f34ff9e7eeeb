"""Data augmentation: an affine map of image and mask, a cut to a sector, then changes of the image's intensities.

Every example has its own random key: its augmentation does not depend on its batch or device.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from mcis.ops.image import BLACK, resize, shifted


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentation; 0 switches a part off. Draws are uniform unless stated otherwise.

    Attributes:
      flip: probability of a left-right flip.
      rotate: largest rotation in either direction, degrees.
      scale: largest absolute log2 of the zoom.
      stretch: largest absolute log2 of the ratio between the zooms of both axes.
      shift: largest absolute translation, as a share of the side.
      brightness: standard deviation of an added constant, for an image range of [0, 1].
      contrast: largest absolute log2 of the contrast factor.
      gamma: largest absolute log2 of the exponent.
      tint: largest absolute log2 of a further exponent of each channel, as in the colour maps of ultrasound machines.
      curve: largest share of a random curve of grey levels that keeps black, so that bright and dark tissue may change
        places as between MRI sequences (Zhou et al. 2019, Models Genesis).
      bias: log2 amplitude of a smooth multiplicative field (MRI coil bias, ultrasound gain).
      noise: largest standard deviation of added Gaussian noise.
      blur: probability of a 3x3 binomial blur, applied twice.
      grey: probability that a colour image becomes grey: one of its channels, or a mixture of them.
      missing: probability that one channel of a colour image is replaced by another, as for a missing MRI sequence.
      depth_gain: log2 amplitude of a gain that changes with depth, row by row (time-gain compensation of ultrasound).
      speckle: largest standard deviation of multiplicative noise with a grain of two pixels.
      coarse: probability that the resolution is halved.
      sector: probability that everything outside a sector is black, as a curved probe shows a scan; not where that
        would remove more than a fifth of the mask.
      marks: probability of drawn callipers, a dotted line and letters, as sonographers leave them. Where they occur on
        lesions alone, a network learns to detect the marks.
    """

    flip: float = 0.5
    rotate: float = 15.0
    scale: float = 0.35
    stretch: float = 0.2
    shift: float = 0.08
    brightness: float = 0.05
    contrast: float = 0.4
    gamma: float = 0.4
    tint: float = 0.0
    curve: float = 0.0
    bias: float = 0.4
    noise: float = 0.06
    blur: float = 0.2
    grey: float = 0.3
    missing: float = 0.2
    depth_gain: float = 0.0
    speckle: float = 0.0
    coarse: float = 0.0
    sector: float = 0.0
    marks: float = 0.0


def augment(
    keys: jax.Array, image: jax.Array, mask: jax.Array, settings: Augmentation, side: int
) -> tuple[jax.Array, jax.Array]:
    """Augment a batch: random keys (B,), image float32 (B, H, H, C) in [0, 1], mask {0,1} of any type (B, H, H, 1).

    Returns the image in [0, 1] and the {0,1} mask, both float32 (B, side, side, ...). Where `side` is below H, a zoom
    shows detail that a smaller image lacks.
    """

    def augment_scan(key, image, mask):
        numbers, grain, noise = jax.random.split(key, 3)
        take = _drawn(numbers)
        # The blur comes before the affine map: XLA's CPU backend would otherwise sample again for each of its reads.
        image = jnp.where(_happens(take, settings.blur), _binomial(_binomial(image)), image)
        height = image.shape[0]
        half = resize(resize(image[None], (side // 2, side // 2)), (height, height))[0]
        image = jnp.where(_happens(take, settings.coarse), half, image)
        moved = _affine(take, jnp.concatenate([image, mask.astype(jnp.float32)], -1), settings, side)
        moved = _sector(take, moved, settings)
        image, mask = moved[..., :-1], moved[..., -1:]
        image = _marks(take, _intensity(take, (grain, noise), image, settings), settings)
        return image, (mask >= 0.5).astype(jnp.float32)

    return jax.vmap(augment_scan)(keys, image, mask)


NUMBERS = 512
"""Random numbers of a scan, more than are taken."""


def _drawn(key):
    """A function that gives the next uniform numbers, in a shape and from `low` to `high`, of those drawn at once.

    XLA compiles each draw by itself: thirty of them took half of the time to compile a training step.
    """
    values, taken = jax.random.uniform(key, (NUMBERS,)), 0

    def take(shape=(), low=0.0, high=1.0):
        nonlocal taken
        start, taken = taken, taken + math.prod(shape)
        assert taken <= NUMBERS
        return low + (high - low) * values[start:taken].reshape(shape)

    return take


def _happens(take, probability):
    """True with a probability, which may be traced."""
    return take() < probability


def _symmetric(take, bound, shape=()):
    return take(shape, -bound, bound)


def _normal(take, shape=()):
    """Standard normal numbers; those beyond four deviations do not occur."""
    return ndtri(take(shape, 3e-5, 1 - 3e-5))


def _integer(take, count):
    """A number of 0 to count - 1."""
    return jnp.minimum(jnp.floor(take((), 0.0, count)).astype(jnp.int32), count - 1)


def _affine(take, x, s: Augmentation, side):
    """Transform x (H, H, C) to (side, side, C) by a random affine map about its centre; zero outside."""
    height = x.shape[0]
    angle = jnp.deg2rad(_symmetric(take, s.rotate))
    zoom, ratio = _symmetric(take, s.scale), _symmetric(take, s.stretch) / 2
    zoom_y, zoom_x = jnp.exp2(zoom + ratio), jnp.exp2(zoom - ratio)
    mirror = jnp.where(_happens(take, s.flip), -1.0, 1.0)
    move = _symmetric(take, s.shift, (2,)) * height
    centre = (height - 1) / 2
    grid = (jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2) * (height / side)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = (cos * grid[:, None] - sin * grid[None, :] * mirror) * zoom_y + centre + move[0]
    x_ = (sin * grid[:, None] + cos * grid[None, :] * mirror) * zoom_x + centre + move[1]
    return bilinear(x, y, x_)


def _sector(take, x, s: Augmentation):
    """Set x (S, S, C), whose last channel is the mask, to zero outside a random sector about a point above it."""
    side = x.shape[0]
    grid = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
    above = take((), 0.02, 0.6)
    y, x_ = grid[:, None] + above, grid[None, :] - 0.5 - _symmetric(take, 0.1)
    radius, widest = jnp.sqrt(y * y + x_ * x_), jnp.deg2rad(take((), 25.0, 50.0))
    inside = (jnp.abs(x_) <= jnp.tan(widest) * y) & (radius >= above + take((), 0.0, 0.1))
    inside &= radius <= above + take((), 0.8, 1.1)
    cut = x * inside[..., None]
    enough = cut[..., -1].sum() >= 0.8 * x[..., -1].sum()
    return jnp.where(enough & _happens(take, s.sector), cut, x)


def bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Values of `image` (H, W, C) at pixel coordinates y, x (any shape), linearly interpolated, 0 outside."""
    height, width, channels = image.shape
    # a border of zeros, one pixel wide, stands for everything outside
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    y = jnp.clip(y + 1.0, 0.0, height + 1.0)
    x = jnp.clip(x + 1.0, 0.0, width + 1.0)
    top = jnp.minimum(jnp.floor(y), height).astype(jnp.int32)
    left = jnp.minimum(jnp.floor(x), width).astype(jnp.int32)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    rows = padded.reshape(-1, channels)
    at = top * (width + 2) + left
    upper = rows[at] * (1 - fx) + rows[at + 1] * fx
    lower = rows[at + width + 2] * (1 - fx) + rows[at + width + 3] * fx
    return upper * (1 - fy) + lower * fy


def _intensity(take, keys, image, s: Augmentation):
    """Change the intensities of (S, S, C) in [0, 1]; what is black stays black, as around every scan at inference.

    The keys are of the speckle and of the noise.
    """
    before, seen = image, jnp.minimum(image.max(-1, keepdims=True) / BLACK, 1.0)
    grain, noise = keys
    side = image.shape[0]
    mixture = _channel_mixture(take, image.shape[-1], s)
    image = (image[..., None] * mixture[None, None]).sum(-2)
    exponent = _symmetric(take, s.gamma) + _symmetric(take, s.tint, (1, 1, image.shape[-1]))
    image = jnp.power(jnp.maximum(image, 1e-4), jnp.exp2(exponent))
    image += take((), 0.0, s.curve) * (_curve(take, image) - image)
    field = _symmetric(take, s.bias, (1, 4, 4, 1))
    rows = _symmetric(take, s.depth_gain, (1, 6, 1, 1))
    image = image * jnp.exp2(resize(field, (side, side)) + resize(rows, (side, 1)))[0]
    coarse = resize(jax.random.normal(grain, (1, side // 2, side // 2, 1)), (side, side))[0]
    image = image * (1.0 + take((), 0.0, s.speckle) * coarse)
    centre = image.mean()
    image = (image - centre) * jnp.exp2(_symmetric(take, s.contrast)) + centre
    image = image + s.brightness * _normal(take)
    deviation = take((), 0.0, s.noise)
    # the same noise in all channels, so that grey scans stay grey
    image = image + deviation * jax.random.normal(noise, (*image.shape[:2], 1))
    return before + seen * (jnp.clip(image, 0.0, 1.0) - before)


KNOTS = 4
"""Grey levels above black that a random curve passes through, evenly spaced."""


def _curve(take, image):
    """Grey levels in [0, 1] through a random piecewise linear curve, which keeps 0."""
    levels = take((KNOTS,))
    hats = [jnp.maximum(0.0, 1.0 - jnp.abs(KNOTS * image - (k + 1))) for k in range(KNOTS)]
    return sum(level * hat for level, hat in zip(levels, hats, strict=True))


CROSSES = 4
"""Largest number of callipers on a scan."""
LETTERS = (5, 40)
"""Height and width of the line of letters in pixels; every fourth column is a gap."""


def _marks(take, image, s: Augmentation):
    """Draw nearly white callipers, a dotted line between two of them and letters on (S, S, C) in [0, 1]."""
    side = image.shape[0]
    y, x = (jnp.arange(side, dtype=jnp.float32).reshape(shape) for shape in ((-1, 1), (1, -1)))
    points = take((CROSSES, 2), 0.0, side)
    arm = take((), 1.5, 4.0)
    number = _integer(take, CROSSES + 1)
    mark = jnp.zeros((side, side), bool)
    for i in range(CROSSES):
        down, across = jnp.abs(y - points[i, 0]), jnp.abs(x - points[i, 1])
        mark |= (i < number) & (jnp.maximum(down, across) <= arm) & (jnp.minimum(down, across) < 0.5)
    along = points[1] - points[0]
    length = jnp.sqrt(jnp.square(along).sum()) + 1e-3
    unit = along / length
    position = (y - points[0, 0]) * unit[0] + (x - points[0, 1]) * unit[1]
    offset = jnp.abs((y - points[0, 0]) * unit[1] - (x - points[0, 1]) * unit[0])
    dots = (position >= 0) & (position <= length) & (offset < 0.6) & (jnp.mod(position, 4.0) < 1.5)
    mark |= dots & (number >= 2) & _happens(take, 0.5)
    height, width = LETTERS[0], min(LETTERS[1], side)
    strokes = (take((height, width)) < 0.5) & (jnp.arange(width) % 4 != 3)[None]
    at = _integer(take, side - height + 1), _integer(take, side - width + 1)
    mark |= jax.lax.dynamic_update_slice(jnp.zeros((side, side), bool), strokes, at)
    level = take((), 0.6, 1.0)
    return jnp.where((mark & _happens(take, s.marks))[..., None], level, image)


def _channel_mixture(take, channels, s: Augmentation):
    """(C, C) matrix M with columns of sum 1: channel j becomes the sum over i of M[i, j] times channel i."""
    weights = jax.nn.softmax(4.0 * _normal(take, (channels, 1)), axis=0)  # mostly one channel dominates
    shown, hidden = _integer(take, channels), _integer(take, channels)
    identity = jnp.eye(channels)
    copied = identity.at[:, hidden].set(identity[:, shown])
    mixture = jnp.where(_happens(take, s.missing), copied, identity)
    return jnp.where(_happens(take, s.grey), weights, mixture)


def _binomial(image):
    """3x3 binomial blur of (H, W, C), edges replicated."""
    for axis in (0, 1):
        before, here, after = shifted(image, axis, 1)
        image = 0.25 * before + 0.5 * here + 0.25 * after
    return image
