"""Weights as one file that runs without mcis, and the script that runs it."""
