"""The cameras of a Meta-World scene, by the names that a config uses: Meta-World's own, and one of ours."""

from __future__ import annotations

from collections.abc import Mapping

from worldloop.simulators.mujoco_rendering import FreeCamera

# From the right and above, near enough for small images: fronts of doors, drawers and windows face the robot.
CLOSE = FreeCamera(target_m=(0.0, 0.68, 0.12), distance_m=1.15, azimuth_deg=140.0, elevation_deg=-36.0, fov_deg=43.0)

# Name -> how it is drawn. Meta-World's `behindGripper` is left out: in half of the tasks it stands inside the arm.
CAMERAS: Mapping[str, str | FreeCamera] = {
    "close": CLOSE,
    "corner": "corner",
    "corner2": "corner2",
    "corner3": "corner3",
    "corner4": "corner4",
    "topview": "topview",
    "gripperPOV": "gripperPOV",
}
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # Meta-World hangs them so; their images are turned
