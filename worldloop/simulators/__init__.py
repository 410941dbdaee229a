"""Simulators by their name in configs, ``simulator.kind``. One folder each; `TaskSimulator` says what they do."""

from worldloop.core.interfaces import TaskSimulator
from worldloop.simulators.libero.simulator import LiberoSimulator
from worldloop.simulators.maniskill.simulator import ManiSkillSimulator
from worldloop.simulators.metaworld.simulator import MetaWorldSimulator
from worldloop.simulators.toy.simulator import ToySimulator

SIMULATORS: dict[str, type[TaskSimulator]] = {
    "libero": LiberoSimulator,
    "maniskill": ManiSkillSimulator,
    "metaworld": MetaWorldSimulator,
    "toy": ToySimulator,
}
