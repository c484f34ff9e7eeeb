"""Data augmentation: an affine map of image and mask, a cut to a sector, then changes of the image's intensities.

Every example has its own random key: its augmentation does not depend on its batch or device.
"""

import dataclasses

import jax
import jax.numpy as jnp

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
        blur, coarse, geometry, cut, intensity, marks = jax.random.split(key, 6)
        # The blur comes before the affine map: XLA's CPU backend would otherwise sample again for each of its reads.
        image = jnp.where(_happens(blur, settings.blur), _binomial(_binomial(image)), image)
        height = image.shape[0]
        half = resize(resize(image[None], (side // 2, side // 2)), (height, height))[0]
        image = jnp.where(_happens(coarse, settings.coarse), half, image)
        moved = _affine(geometry, jnp.concatenate([image, mask.astype(jnp.float32)], -1), settings, side)
        moved = _sector(cut, moved, settings)
        image, mask = moved[..., :-1], moved[..., -1:]
        image = _marks(marks, _intensity(intensity, image, settings), settings)
        return image, (mask >= 0.5).astype(jnp.float32)

    return jax.vmap(augment_scan)(keys, image, mask)


def _happens(key, probability):
    """True with a probability, which may be traced or an int; `jax.random.bernoulli` rejects an int."""
    return jax.random.uniform(key) < probability


def _uniform(key, bound, shape=()):
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _affine(key, x, s: Augmentation, side):
    """Transform x (H, H, C) to (side, side, C) by a random affine map about its centre; zero outside."""
    height = x.shape[0]
    flip, rotate, scale, stretch, shift = jax.random.split(key, 5)
    angle = jnp.deg2rad(_uniform(rotate, s.rotate))
    zoom, ratio = -_uniform(scale, s.scale), _uniform(stretch, s.stretch) / 2
    zoom_y, zoom_x = jnp.exp2(zoom + ratio), jnp.exp2(zoom - ratio)
    mirror = jnp.where(_happens(flip, s.flip), -1.0, 1.0)
    move = _uniform(shift, s.shift, (2,)) * height
    centre = (height - 1) / 2
    grid = (jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2) * (height / side)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = (cos * grid[:, None] - sin * grid[None, :] * mirror) * zoom_y + centre + move[0]
    x_ = (sin * grid[:, None] + cos * grid[None, :] * mirror) * zoom_x + centre + move[1]
    return bilinear(x, y, x_)


def _sector(key, x, s: Augmentation):
    """Set x (S, S, C), whose last channel is the mask, to zero outside a random sector about a point above it."""
    drawn, apex, centre, angle, near, far = jax.random.split(key, 6)
    side = x.shape[0]
    grid = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
    above = jax.random.uniform(apex, (), minval=0.02, maxval=0.6)
    y, x_ = grid[:, None] + above, grid[None, :] - 0.5 - _uniform(centre, 0.1)
    radius, widest = jnp.sqrt(y * y + x_ * x_), jnp.deg2rad(jax.random.uniform(angle, (), minval=25.0, maxval=50.0))
    inside = (jnp.abs(x_) <= jnp.tan(widest) * y) & (radius >= above + jax.random.uniform(near, (), maxval=0.1))
    inside &= radius <= above + jax.random.uniform(far, (), minval=0.8, maxval=1.1)
    cut = x * inside[..., None]
    enough = cut[..., -1].sum() >= 0.8 * x[..., -1].sum()
    return jnp.where(enough & _happens(drawn, s.sector), cut, x)


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


def _intensity(key, image, s: Augmentation):
    """Change the intensities of (S, S, C) in [0, 1]; what is black stays black, as around every scan at inference."""
    before, seen = image, jnp.minimum(image.max(-1, keepdims=True) / BLACK, 1.0)
    keys = jax.random.split(key, 13)
    channels, gamma, contrast, brightness, bias, depth, speckle, grain, noise, level, tint, knots, share = keys
    side = image.shape[0]
    mixture = _channel_mixture(channels, image.shape[-1], s)
    image = (image[..., None] * mixture[None, None]).sum(-2)
    exponent = _uniform(gamma, s.gamma) + _uniform(tint, s.tint, (1, 1, image.shape[-1]))
    image = jnp.power(jnp.maximum(image, 1e-4), jnp.exp2(exponent))
    image += jax.random.uniform(share, (), maxval=s.curve) * (_curve(knots, image) - image)
    field = _uniform(bias, s.bias, (1, 4, 4, 1))
    rows = _uniform(depth, s.depth_gain, (1, 6, 1, 1))
    image = image * jnp.exp2(resize(field, (side, side)) + resize(rows, (side, 1)))[0]
    coarse = resize(jax.random.normal(grain, (1, side // 2, side // 2, 1)), (side, side))[0]
    image = image * (1.0 + jax.random.uniform(speckle, (), maxval=s.speckle) * coarse)
    centre = image.mean()
    image = (image - centre) * jnp.exp2(_uniform(contrast, s.contrast)) + centre
    image = image + s.brightness * jax.random.normal(brightness)
    deviation = jax.random.uniform(level, (), maxval=s.noise)
    # the same noise in all channels, so that grey scans stay grey
    image = image + deviation * jax.random.normal(noise, (*image.shape[:2], 1))
    return before + seen * (jnp.clip(image, 0.0, 1.0) - before)


KNOTS = 4
"""Grey levels above black that a random curve passes through, evenly spaced."""


def _curve(key, image):
    """Grey levels in [0, 1] through a random piecewise linear curve, which keeps 0."""
    levels = jax.random.uniform(key, (KNOTS,))
    hats = [jnp.maximum(0.0, 1.0 - jnp.abs(KNOTS * image - (k + 1))) for k in range(KNOTS)]
    return sum(level * hat for level, hat in zip(levels, hats, strict=True))


CROSSES = 4
"""Largest number of callipers on a scan."""
LETTERS = (5, 40)
"""Height and width of the line of letters in pixels; every fourth column is a gap."""


def _marks(key, image, s: Augmentation):
    """Draw nearly white callipers, a dotted line between two of them and letters on (S, S, C) in [0, 1]."""
    drawn, place, count, size, letters, corner, light, lined = jax.random.split(key, 8)
    side = image.shape[0]
    y, x = (jnp.arange(side, dtype=jnp.float32).reshape(shape) for shape in ((-1, 1), (1, -1)))
    points = jax.random.uniform(place, (CROSSES, 2), maxval=side)
    arm = jax.random.uniform(size, (), minval=1.5, maxval=4.0)
    number = jax.random.randint(count, (), 0, CROSSES + 1)
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
    mark |= dots & (number >= 2) & _happens(lined, 0.5)
    height, width = LETTERS[0], min(LETTERS[1], side)
    strokes = jax.random.bernoulli(letters, 0.5, (height, width)) & (jnp.arange(width) % 4 != 3)[None]
    at = jax.random.randint(corner, (2,), 0, jnp.array([side - height + 1, side - width + 1]))
    mark |= jax.lax.dynamic_update_slice(jnp.zeros((side, side), bool), strokes, (at[0], at[1]))
    level = jax.random.uniform(light, (), minval=0.6)
    return jnp.where((mark & _happens(drawn, s.marks))[..., None], level, image)


def _channel_mixture(key, channels, s: Augmentation):
    """(C, C) matrix M with columns of sum 1: channel j becomes the sum over i of M[i, j] times channel i."""
    grey, share, missing, pair = jax.random.split(key, 4)
    weights = jax.nn.softmax(4.0 * jax.random.normal(share, (channels, 1)), axis=0)  # mostly one channel dominates
    shown, hidden = jax.random.randint(pair, (2,), 0, channels)
    identity = jnp.eye(channels)
    copied = identity.at[:, hidden].set(identity[:, shown])
    mixture = jnp.where(_happens(missing, s.missing), copied, identity)
    return jnp.where(_happens(grey, s.grey), weights, mixture)


def _binomial(image):
    """3x3 binomial blur of (H, W, C), edges replicated."""
    for axis in (0, 1):
        before, here, after = shifted(image, axis, 1)
        image = 0.25 * before + 0.5 * here + 0.25 * after
    return image
