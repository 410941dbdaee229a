"""LeRobot's policies, with their own losses and processors: ``policy.kind=lerobot``."""
