"""Pure functions on arrays: convolutions, image filters, augmentation, losses, metrics, calibration, OOD scores."""
