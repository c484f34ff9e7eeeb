"""What is learned: the Task settings, the TASKS table, and a task's network from canvas to probabilities."""
