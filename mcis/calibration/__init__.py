"""Fitted after training: probabilities, rejection and review limits, and a segmentation network's CRF."""
