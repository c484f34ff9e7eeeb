"""Training: step.py is pure, parallel.py spreads it over devices, loop.py runs, logs, evaluates and saves."""
