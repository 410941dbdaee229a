"""`POLICIES` maps the names in a config, ``policy.kind``, to classes. Each policy has its own folder; see `Policy`."""

from worldloop.core.interfaces import Policy
from worldloop.policies.harmowam.policy import HarmoWAM
from worldloop.policies.lerobot.policy import LeRobotPolicy
from worldloop.policies.token_vla.policy import TokenVLA

POLICIES: dict[str, type[Policy]] = {
    "token_vla": TokenVLA,
    "harmowam": HarmoWAM,
    "lerobot": LeRobotPolicy,
}
