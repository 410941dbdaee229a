"""Meta-World's tasks by its own names. No import of metaworld here."""

from worldloop.simulators.metaworld.tasks import MT10, OTHERS, MetaWorldTask

TASKS: dict[str, MetaWorldTask] = {task.id: task for task in (*MT10, *OTHERS)}
