"""Fits after training: calibration of probabilities, rejection and review limits, a segmentation network's CRF."""
