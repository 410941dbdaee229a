"""Critics: networks that predict the return from an observation.

`CRITICS` maps the names in a config, ``value.kind``, to the critics that are built from the data alone. `viva` is built
on a world model.
"""

from worldloop.value.categorical import CategoricalCritic
from worldloop.value.critic import Critic
from worldloop.value.success_critic import SuccessCritic

CRITICS: dict[str, type[Critic]] = {
    "categorical": CategoricalCritic,
    "success": SuccessCritic,
}
