"""Compares our CRF with the program of the authors on real scans: the Dice between both masks, and the times.

    python tests/lanes/parity/densecrf.py --densecrf=OTHER/bin/python --data_dir=data [--sources=lgg,busi] [--scans=20]

pydensecrf builds from source only, with Cython below 3 and NumPy below 2, and so needs an environment of its own
(`make densecrf`); OTHER/bin/python is its Python. Probabilities come from the bundled weights, scans from the
validation split.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np


class DenseCRF:
    """pydensecrf in a process of its own: `run(square, probability, crf)` -> (probabilities, seconds)."""

    def __init__(self, python):
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, square, probability, crf):
        """Uint8 (H, W), float32 (H, W), parameters -> float32 (H, W), seconds."""
        file = pathlib.Path(self.folder.name, "scan.npz")
        strengths = [crf.steps, crf.smooth_weight, crf.smooth_sigma, crf.weight, crf.sigma, crf.grey_sigma]
        np.savez(file, square=square, probability=probability, strengths=np.array(strengths, float))
        print(file, file=self.process.stdin, flush=True)
        seconds = float(self.process.stdout.readline())
        return np.load(file.with_suffix(".npy")), seconds


def worker():
    """Process the files named on standard input."""
    import pydensecrf.densecrf
    from pydensecrf.utils import create_pairwise_bilateral, unary_from_softmax

    for line in sys.stdin:
        file = pathlib.Path(line.strip())
        with np.load(file) as given:
            square, probability, strengths = given["square"], given["probability"], given["strengths"]
        steps, smooth_weight, smooth_sigma, weight, sigma, grey_sigma = (float(value) for value in strengths)
        began = time.perf_counter()
        height, width = square.shape
        field = pydensecrf.densecrf.DenseCRF2D(width, height, 2)
        clipped = np.clip(probability, 1e-6, 1 - 1e-6)
        field.setUnaryEnergy(unary_from_softmax(np.stack([1 - clipped, clipped])))
        field.addPairwiseGaussian(sxy=smooth_sigma, compat=smooth_weight)
        grey = create_pairwise_bilateral((sigma, sigma), (grey_sigma,), square[..., None], chdim=2)
        field.addPairwiseEnergy(grey, compat=weight)
        found = np.array(field.inference(int(steps)))[1].reshape(height, width)
        seconds = time.perf_counter() - began
        np.save(file.with_suffix(".npy"), found)
        print(seconds, flush=True)


def make_exact():
    """A function of (probability, grey, crf): the exact mean field of all pairs of pixels, O(N^2)."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def kernel(q, features):
        norms = (features**2).sum(1)

        def rows(start):
            some, norm = (jax.lax.dynamic_slice_in_dim(x, start, 256) for x in (features, norms))
            distance = norm[:, None] + norms[None] - 2 * jnp.dot(some, features.T, precision="highest")
            return jnp.exp(-0.5 * jnp.maximum(distance, 0)) @ q

        return jax.lax.map(rows, 256 * jnp.arange(len(q) // 256)).reshape(-1)

    def exact(probability, grey, crf):
        place = np.stack(np.meshgrid(*map(np.arange, grey.shape), indexing="ij"), -1).reshape(-1, 2)
        level = grey.reshape(-1, 1) / crf.grey_sigma
        kernels = []
        for weight, features in (
            (crf.smooth_weight, place / crf.smooth_sigma),
            (crf.weight, np.concatenate([place / crf.sigma, level], 1)),
        ):
            features = jnp.asarray(features, jnp.float32)
            kernels.append((weight, features, 1 / np.sqrt(kernel(jnp.ones(len(features)), features))))
        q = np.clip(probability, 1e-6, 1 - 1e-6).reshape(-1).astype(np.float64)
        unary = np.log(q) - np.log1p(-q)
        for _ in range(crf.steps):
            pull = sum(w * s * kernel(jnp.asarray(s * (2 * q - 1), jnp.float32), f) for w, f, s in kernels)
            q = 1 / (1 + np.exp(-(unary + pull)))
        return q.reshape(grey.shape)

    return exact


def main():
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--densecrf")
    parser.add_argument("--data_dir")
    parser.add_argument("--sources", default="lgg,busi")
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--exact", type=int, default=2, help="scans of each source that are also computed exactly")
    options = parser.parse_args()
    if options.worker:
        return worker()
    import dataclasses

    import jax

    from mcis.checkpoints.bundle import load_bundle
    from mcis.data import dataset, storage
    from mcis.imaging.letterbox import INPUT_SIZE, letterbox
    from mcis.ops.crf import CRF, mean_field
    from mcis.tasks.apply import make_network
    from mcis.tasks.table import TASKS

    reference, weights, crf = DenseCRF(options.densecrf), load_bundle(), CRF()
    ours, exact = jax.jit(mean_field, static_argnums=2), make_exact()
    for source in options.sources.split(","):
        task = next(task for task in TASKS.values() if task.segments and source in task.sources)
        one = weights[task.name]
        # at the size of the model input, so that both filter 256x256 pixels
        network = jax.jit(make_network(dataclasses.replace(one.task, size=INPUT_SIZE)))
        dices, changed, times, errors = [], [], [], []
        records = dataset.records(source, "validation", options.data_dir)
        for i in np.linspace(0, len(records) - 1, 6 * options.scans).astype(int):
            square, _ = letterbox(storage.decode(records[i])[0])
            outputs, prepared = network(one.variables, square[None])
            before = np.asarray(outputs.mask)[0, ..., 0]
            if not (before > 0.5).mean() > 0.005 or len(dices) == options.scans:
                continue
            grey = np.round(np.asarray(prepared)[0].mean(-1) * 255).clip(0, 255).astype(np.uint8)
            expected, reference_time = reference.run(grey, before, crf)
            ours(outputs.mask, prepared, crf).block_until_ready()
            began = time.perf_counter()
            found = np.asarray(ours(outputs.mask, prepared, crf))[0, ..., 0]
            times.append((time.perf_counter() - began, reference_time))
            a, b, c = found > 0.5, expected > 0.5, before > 0.5
            dices.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1) if a.any() or b.any() else 1.0)
            changed.append(2 * (c & b).sum() / max(c.sum() + b.sum(), 1))
            if len(errors) < options.exact:
                true = exact(before, grey, crf)
                errors.append((np.abs(found - true).max(), np.abs(expected - true).max()))
        ms = 1e3 * np.median(times, 0)
        print(
            f"{source}: {len(dices)} scans, Dice of ours and pydensecrf: mean {np.mean(dices):.4f}, minimum "
            f"{np.min(dices):.4f}; of the network's mask and pydensecrf: mean {np.mean(changed):.3f}; "
            f"ms per scan: ours {ms[0]:.1f}, pydensecrf {ms[1]:.1f}, ratio {ms[0] / ms[1]:.2f}; largest error compared "
            f"with the exact field, {len(errors)} scans: ours {max(e[0] for e in errors):.4f}, pydensecrf "
            f"{max(e[1] for e in errors):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
