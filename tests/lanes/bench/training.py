"""`make beside`: training in mcis and in PyTorch on the same scans of BUSI for equal time, one after the other.

    PYTHONPATH=. python tests/lanes/bench/training.py [--epochs 40] [--data_dir DIR] [--out bench/training.json]

mcis runs `mcis train --task=segment_breast --sources=busi` with `light`, one network for label and mask. PyTorch trains
two common choices: the published U-Net of 7.8 million parameters at 256 px, and torchvision's ResNet-18 at 160 px, both
from random weights and in bfloat16, which is fastest on CPUs with AMX, each for as many minutes as mcis took. All train
on the training split and are scored on the validation split at their last epoch, without model selection; masks of mcis
at the scans' resolution, PyTorch's at the model input's. Minutes count training only.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch.nn import functional as F

from mcis.data import dataset
from mcis.ops.metrics import MASK_THRESHOLD, bootstrap_interval, dice
from tests.lanes.parity.references import UNet, torchvision

GOAL = 0.65
"""Dice on lesion scans; the minute at which it is reached is reported."""


def batches(scans, size, batch, rng):
    """Endless batches: images (B, 3, S, S) and masks float32, labels, flipped at random."""
    image, mask = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in scans.pixels.read())
    label = torch.from_numpy(scans.label.astype(np.int64))
    while True:
        chosen = torch.from_numpy(rng.integers(0, len(scans), batch))
        x, m = prepared(image[chosen], size), F.interpolate(mask[chosen].float(), size, mode="area")
        angle, zoom, mirror = (
            rng.uniform(-0.26, 0.26, batch),
            2.0 ** rng.uniform(-0.35, 0.35, batch),
            rng.choice([-1, 1], batch),
        )
        cos, sin, none = np.cos(angle) * zoom, np.sin(angle) * zoom, np.zeros(batch)
        theta = np.stack([np.stack([cos * mirror, -sin, none], 1), np.stack([sin * mirror, cos, none], 1)], 1)
        grid = F.affine_grid(torch.from_numpy(theta).float(), [batch, 1, size, size], align_corners=False)
        gain = torch.from_numpy(2.0 ** rng.uniform(-0.4, 0.4, (batch, 1, 1, 1))).float()
        x, m = F.grid_sample(x * gain, grid, align_corners=False), F.grid_sample(m, grid, align_corners=False)
        yield x, (m > 0.5).float(), label[chosen]


def prepared(image, size):
    """Uint8 scans (B, 3, S, S) -> float32 of mean 0 and deviation 1, at `size`."""
    x = F.interpolate(image.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp(min=1e-3)


def learn(model, loss_of, scans, validate, minutes, size, batch):
    """Train with AdamW and a cosine schedule over the minutes; returns ten [(minute, result of `validate`)]."""
    rng, spent, history = np.random.default_rng(0), 0.0, []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    stream = batches(scans, size, batch, rng)
    while spent < 60 * minutes:
        started = time.perf_counter()
        model.train()
        while spent + time.perf_counter() - started < 60 * minutes * (len(history) + 1) / 10:
            share = (spent + time.perf_counter() - started) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, share / 0.05) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
            x, mask, label = next(stream)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), mask, label)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        spent += time.perf_counter() - started
        model.eval()
        history.append((spent / 60, validate(model)))
        print(f"  {spent / 60:5.1f} min: {history[-1][1]}", flush=True)
    return history


def soft_dice_and_entropy(logits, mask, _):
    """The U-Net's loss, the same as in mcis."""
    p = logits.sigmoid()
    overlap = (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return (1 - overlap).mean() + F.binary_cross_entropy_with_logits(logits, mask)


def predict(model, scans, size):
    """Output of a PyTorch model for one scan after the other, float32."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for image in scans.pixels.read()[0]:
            x = prepared(torch.from_numpy(image[None]).permute(0, 3, 1, 2), size)
            yield model(x.contiguous(memory_format=torch.channels_last)).float()


def lesion_dice(model, scans, size=256):
    """Dice of each scan's mask at the resolution of the model input, float (N,)."""
    true = scans.pixels.read()[1][..., 0] > 0
    logits = [F.interpolate(x, true.shape[1], mode="bilinear")[0, 0] for x in predict(model, scans, size)]
    mask = np.stack([x.sigmoid().numpy() > MASK_THRESHOLD for x in logits])
    return dice(*(x.sum((1, 2)) for x in (mask & true, mask, true)))


def interval(values, group):
    """Mean with its 95 % interval, resampled by patient."""
    low, high = bootstrap_interval(lambda index, _: {"mean": float(values[index].mean())}, group)["mean"]
    return {"value": float(values.mean()), "low": low, "high": high}


def ours(options, folder):
    """Train in mcis; returns [(minute, validation metrics)] and the metrics of `mcis evaluate` for the last epoch."""
    command = [sys.executable, "-m", "mcis.launch", "--task=segment_breast", "--sources=busi", "--model=light"]
    command += ["--size=128", "--learning_rate=1e-3", "--batch_size=8", "--select=last"]
    command += [f"--epochs={options.epochs}", f"--runs_dir={folder}"]
    where = [f"--data_dir={options.data_dir}"] if options.data_dir else []
    subprocess.run([*command, "--run=ours", *where], check=True, stdout=subprocess.DEVNULL)
    spent, history = 0.0, []
    for line in (folder / "ours" / "log.jsonl").read_text().splitlines():
        epoch = json.loads(line)
        spent += epoch["train_seconds"] / 60
        history.append((spent, epoch["validation"]))
    scored = [sys.executable, "-m", "mcis", "evaluate", str(folder / "ours"), "--split=left_out", "--heat=0"]
    subprocess.run([*scored, f"--out={folder / 'report'}", *where], check=True, stdout=subprocess.DEVNULL)
    return history, json.loads((folder / "report" / "report.json").read_text())["sources"]["busi"]["metrics"]


def first(history, reached):
    """The minute of the first entry that `reached` accepts; None if there is none."""
    return next((round(minute, 1) for minute, figures in history if reached(figures)), None)


def main():
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--data_dir")
    parser.add_argument("--out", default="bench/training.json")
    options = parser.parse_args()
    training, validation = (
        dataset.load(("busi",), split, options.data_dir, "breast") for split in ("train", "validation")
    )
    lesion, known = validation.area > 0, validation.label >= 0
    group = validation.group
    with tempfile.TemporaryDirectory() as folder:
        history, metrics = ours(options, pathlib.Path(folder))
    minutes = history[-1][0]
    found = {
        "ours": {
            "minutes": minutes,
            "minutes to Dice 0.65": first(history, lambda f: f["dice_lesion"] >= GOAL),
            "dice_lesion": metrics["dice_lesion"],
            "dice": metrics["gated_dice"],
            "accuracy": metrics["accuracy"],
        }
    }
    print(json.dumps(found["ours"]), flush=True)

    def segmented(model):
        return {"dice_lesion": float(lesion_dice(model, validation.take(lesion)).mean())}

    unet = UNet().to(memory_format=torch.channels_last)
    history = learn(unet, soft_dice_and_entropy, training, segmented, minutes, 256, 8)
    every = lesion_dice(unet, validation)
    found["U-Net"] = {
        "minutes": history[-1][0],
        "minutes to Dice 0.65": first(history, lambda f: f["dice_lesion"] >= GOAL),
        "dice_lesion": interval(every[lesion], group[lesion]),
        "dice": interval(every, group),
    }
    print(json.dumps(found["U-Net"]), flush=True)

    def classes(model):
        return np.array([int(logits.argmax()) for logits in predict(model, validation, 160)])

    resnet = torchvision.models.resnet18(num_classes=3).to(memory_format=torch.channels_last)
    learned = training.take(training.label >= 0)
    learn(
        resnet,
        lambda logits, _, label: F.cross_entropy(logits, label, label_smoothing=0.1),
        learned,
        lambda model: {"accuracy": float((classes(model) == validation.label)[known].mean())},
        minutes,
        160,
        16,
    )
    right = (classes(resnet) == validation.label).astype(float)
    found["ResNet-18"] = {"minutes": minutes, "accuracy": interval(right[known], group[known])}
    print(json.dumps(found["ResNet-18"]), flush=True)
    out = pathlib.Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
