"""What is learned: the Task settings, the TASKS table, and a task's network from canvas to probabilities."""

from mcis.tasks.config import Task
from mcis.tasks.table import TASKS

__all__ = ["TASKS", "Task"]
