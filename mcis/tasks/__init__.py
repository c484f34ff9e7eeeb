"""What is learned: the Task settings, the TASKS table, and a task's network from model input to probabilities."""

from mcis.tasks.config import Task
from mcis.tasks.table import TASKS

__all__ = ["TASKS", "Task"]
