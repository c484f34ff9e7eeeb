"""Training: a pure step, spread over devices and processes, run by a loop that can be stopped and resumed."""
