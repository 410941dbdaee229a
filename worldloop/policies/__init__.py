"""Policies by their name in configs, ``policy.kind``. One folder each; `Policy` says what they do."""

from worldloop.core.interfaces import Policy
from worldloop.policies.token_vla.policy import TokenVLA

POLICIES: dict[str, type[Policy]] = {
    "token_vla": TokenVLA,
}
