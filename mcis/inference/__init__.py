"""From scans to findings: the cascade as one jitted function, and the loaded model that runs it."""
