"""LIBERO-Object: ten tasks, each with another thing to put into the basket and with scenes of their own."""

from worldloop.simulators.libero.family import LiberoTask
from worldloop.simulators.libero.grasping import Grasp
from worldloop.simulators.libero.place import PlaceTask

MAX_STEPS = 280
FROM_FLOOR = Grasp("top", depth_m=0.025, travel_z_m=0.25)
THINGS = (
    "alphabet_soup",
    "cream_cheese",
    "salad_dressing",
    "bbq_sauce",
    "ketchup",
    "tomato_sauce",
    "butter",
    "milk",
    "chocolate_pudding",
    "orange_juice",
)


def _make_task(thing: str) -> PlaceTask:
    words = thing.replace("_", " ")
    return PlaceTask(
        f"pick_up_the_{thing}_and_place_it_in_the_basket",
        (
            f"pick up the {words} and place it in the basket",
            f"put the {words} into the basket",
            f"take the {words} and drop it in the basket",
        ),
        max_episode_steps=MAX_STEPS,
        drop_m=0.03,
        carry_m=0.13,
        aims_at="basket_1",
        above_top=True,
        grasp=FROM_FLOOR,
    )


OBJECT_TASKS: tuple[LiberoTask, ...] = tuple(_make_task(thing) for thing in THINGS)
