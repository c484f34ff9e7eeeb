"""Pure functions on arrays: convolutions, filters, augmentation, losses, metrics, calibration, rejection scores."""
