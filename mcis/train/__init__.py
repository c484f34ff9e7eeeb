"""Training: step.py is pure, parallel.py and processes.py spread it, loop.py runs it, and checkpoints.py keeps it."""
