"""Instructions that no task has: for each task other words for the same wish, written without looking at a result."""

PARAPHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "libero_goal": {
        "open_the_middle_drawer_of_the_cabinet": (
            "slide the drawer in the middle outwards",
            "I need something from the centre drawer, open it",
            "get the middle compartment of the cupboard open",
        ),
        "put_the_bowl_on_the_stove": (
            "the bowl belongs on the cooker",
            "take the dish and set it on the hob",
            "I want to heat the bowl, bring it to the burner",
        ),
        "put_the_wine_bottle_on_top_of_the_cabinet": (
            "the wine goes up on the cupboard",
            "set the bottle down on the cabinet's upper side",
            "store the bottle above the drawers",
        ),
        "open_the_top_drawer_and_put_the_bowl_inside": (
            "the bowl should end up in the highest drawer, which is shut",
            "hide the dish in the uppermost drawer",
            "first open the topmost drawer, and drop the bowl in",
        ),
        "put_the_bowl_on_top_of_the_cabinet": (
            "the bowl goes up on the cupboard",
            "set the dish down above the drawers",
            "store the bowl on the cabinet's upper side",
        ),
        "push_the_plate_to_the_front_of_the_stove": (
            "shove the dinner plate until it is before the cooker",
            "the plate should lie before the hob",
            "shift the plate over to the stove's near side",
        ),
        "put_the_cream_cheese_in_the_bowl": (
            "the cheese belongs in the dish",
            "fill the bowl with the cheese package",
            "let the cream cheese fall into the dish",
        ),
        "turn_on_the_stove": (
            "start the cooker",
            "I want to cook, so light the burner",
            "rotate the hob's control to on",
        ),
        "put_the_bowl_on_the_plate": (
            "the dish belongs on the dinner plate",
            "lower the bowl onto the plate",
            "stack the bowl upon the plate",
        ),
        "put_the_wine_bottle_on_the_rack": (
            "the wine belongs in its holder",
            "store the bottle in the wine holder",
            "rest the bottle upon the rack",
        ),
    },
    "mt10": {
        "reach-v3": (
            "go to the red marker",
            "touch the red point with your hand",
            "bring your gripper where the red spot is",
        ),
        "push-v3": (
            "shove the disc to the green mark",
            "the puck should slide to the green point",
            "nudge the puck to green",
        ),
        "pick-place-v3": (
            "carry the disc up to the blue mark",
            "take the puck to the blue point",
            "hold the puck in blue",
        ),
        "door-open-v3": ("get the safe open", "swing the door wide", "make the doorway accessible"),
        "drawer-open-v3": (
            "slide the drawer outwards",
            "I need something from the drawer",
            "get the drawer to come out",
        ),
        "drawer-close-v3": ("slide the drawer back in", "shut the drawer", "the drawer must not stay out"),
        "button-press-topdown-v3": (
            "hit the button",
            "press down what is on the box",
            "give the red knob a push downwards",
        ),
        "peg-insert-side-v3": (
            "stick the rod into the opening",
            "the peg belongs in the hole",
            "plug the green stick in",
        ),
        "window-open-v3": ("let some fresh air in", "get the window open", "shift the pane to the right"),
        "window-close-v3": ("keep the cold air out", "shut the window", "shift the pane to the left"),
    },
    "push_and_pull": {
        "PushCube-v1": (
            "shove the block away from you",
            "drive the cube forwards to the goal",
            "make the cube go farther off, to its goal",
            "thrust the blue box ahead",
            "send the block to the far side",
            "press the cube onwards to the mark",
            "get the box away from the arm's base",
            "bulldoze the cube forward",
            "the blue cube should be farther from the robot",
            "nudge the block outwards until it is at the target",
        ),
        "PullCube-v1": (
            "draw the block nearer to you",
            "tug the cube backwards to the goal",
            "make the cube come closer, to its goal",
            "haul the blue box back",
            "bring the block to the near side",
            "fetch the cube back to the mark",
            "get the box nearer to the arm's base",
            "rake the cube backward",
            "the blue cube should be closer to the robot",
            "retrieve the block until it is at the target",
        ),
    },
}
