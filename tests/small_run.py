"""A run that trains in seconds, which tests of training share: its task; `scans` and `finished` are in conftest."""

import dataclasses

from mcis.tasks.config import TASKS

SMALL = dataclasses.replace(
    TASKS["route"],
    sources=("phantom",),
    select="balanced_accuracy",
    features=4,
    size=32,
    epochs=3,
    batch_size=16,
    ema=0.5,
    learning_rate=1e-2,
)
