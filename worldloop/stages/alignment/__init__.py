"""The parts of `align_world_model`: its settings, its objective, and its two modes."""
