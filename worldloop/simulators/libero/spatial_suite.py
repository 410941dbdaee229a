"""LIBERO-Spatial: ten tasks with the same things; where the bowl stands, among two of them, says which one is meant."""

from worldloop.simulators.libero.family import LiberoTask
from worldloop.simulators.libero.grasping import Grasp
from worldloop.simulators.libero.place import PlaceTask

MAX_STEPS = 280
ON_TABLE = Grasp("bowl", depth_m=0.018, travel_z_m=1.12)
AT_CABINET = Grasp("bowl", depth_m=0.018, along="x", side=-1.0, travel_z_m=1.12)  # the drawer's front is at its side
CARRY_M, CARRY_FROM_CABINET_M = 0.17, 0.3
PLACES = (
    "between the plate and the ramekin",
    "next to the ramekin",
    "from table center",
    "on the cookie box",
    "in the top drawer of the wooden cabinet",
    "on the ramekin",
    "next to the cookie box",
    "on the stove",
    "next to the plate",
    "on the wooden cabinet",
)


def _make_task(place: str) -> PlaceTask:
    is_at_cabinet = "cabinet" in place
    return PlaceTask(
        f"pick_up_the_black_bowl_{place.replace(' ', '_')}_and_place_it_on_the_plate",
        (
            f"pick up the black bowl {place} and place it on the plate",
            f"put the black bowl {place} on the plate",
            f"take the bowl {place} and set it down on the plate",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.012,
        carry_m=CARRY_FROM_CABINET_M if is_at_cabinet else CARRY_M,
        grasp=AT_CABINET if is_at_cabinet else ON_TABLE,
    )


SPATIAL_TASKS: tuple[LiberoTask, ...] = tuple(_make_task(place) for place in PLACES)
