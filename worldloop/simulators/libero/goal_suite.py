"""LIBERO-Goal: ten tasks in one scene, so that the instruction alone says what to do."""

from worldloop.simulators.libero.drawer import FillDrawerTask, OpenDrawerTask
from worldloop.simulators.libero.family import LiberoTask
from worldloop.simulators.libero.grasping import Grasp
from worldloop.simulators.libero.place import PlaceTask
from worldloop.simulators.libero.stove import TurnOnTask

MAX_STEPS = 300
LONG_STEPS = 450  # for two parts
BOWL_ABOVE_ALL = Grasp("bowl", depth_m=0.018, travel_z_m=1.1)
BOTTLE = Grasp("top", depth_m=0.07, travel_z_m=1.25)
BESIDE_OPEN_DRAWER = Grasp("bowl", depth_m=0.018, roll_rad=-0.5)  # upright, the arm would hit the drawer

GOAL_TASKS: tuple[LiberoTask, ...] = (
    OpenDrawerTask(
        "open_the_middle_drawer_of_the_cabinet",
        (
            "open the middle drawer of the cabinet",
            "pull out the cabinet's middle drawer",
            "open the second drawer of the cabinet",
        ),
        max_episode_steps=MAX_STEPS,
        drawer="middle",
    ),
    PlaceTask(
        "put_the_bowl_on_the_stove",
        ("put the bowl on the stove", "place the black bowl on the stove", "move the bowl onto the stove's plate"),
        max_episode_steps=MAX_STEPS,
        drop_m=0.01,
        carry_m=0.16,
        grasp=BOWL_ABOVE_ALL,
    ),
    PlaceTask(
        "put_the_wine_bottle_on_top_of_the_cabinet",
        (
            "put the wine bottle on top of the cabinet",
            "place the bottle of wine on the cabinet",
            "stand the wine bottle on top of the cabinet",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.02,
        carry_m=0.22,
        grasp=BOTTLE,
    ),
    FillDrawerTask(
        "open_the_top_drawer_and_put_the_bowl_inside",
        (
            "open the top drawer and put the bowl inside",
            "pull out the top drawer and place the black bowl in it",
            "open the upper drawer, then put the bowl into it",
        ),
        max_episode_steps=LONG_STEPS,
        drop_m=0.0,
        carry_m=0.22,
        above_top=True,
        grasp=BESIDE_OPEN_DRAWER,
        drawer="top",
    ),
    PlaceTask(
        "put_the_bowl_on_top_of_the_cabinet",
        (
            "put the bowl on top of the cabinet",
            "place the black bowl on the cabinet",
            "move the bowl to the top of the cabinet",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.01,
        carry_m=0.16,
        grasp=BOWL_ABOVE_ALL,
    ),
    PlaceTask(
        "push_the_plate_to_the_front_of_the_stove",
        (
            "push the plate to the front of the stove",
            "move the plate in front of the stove",
            "slide the plate to the stove's front",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.012,
        carry_m=0.06,
        grasp=Grasp("plate", depth_m=0.012, travel_z_m=1.1),
    ),
    PlaceTask(
        "put_the_cream_cheese_in_the_bowl",
        (
            "put the cream cheese in the bowl",
            "place the cream cheese into the black bowl",
            "drop the box of cream cheese into the bowl",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.0,
        carry_m=0.17,
        above_top=True,
        grasp=Grasp("top", depth_m=0.025, travel_z_m=1.1),
    ),
    TurnOnTask(
        "turn_on_the_stove",
        ("turn on the stove", "switch the stove on", "turn the knob of the stove"),
        max_episode_steps=MAX_STEPS,
    ),
    PlaceTask(
        "put_the_bowl_on_the_plate",
        ("put the bowl on the plate", "place the black bowl on the plate", "set the bowl down on the plate"),
        max_episode_steps=MAX_STEPS,
        drop_m=0.012,
        carry_m=0.2,
        grasp=BOWL_ABOVE_ALL,
    ),
    PlaceTask(
        "put_the_wine_bottle_on_the_rack",
        (
            "put the wine bottle on the rack",
            "place the bottle of wine on the wine rack",
            "lay the wine bottle onto the rack",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.02,
        carry_m=0.22,
        grasp=BOTTLE,
    ),
)
