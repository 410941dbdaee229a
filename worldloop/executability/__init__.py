"""Executability of imagined motion: inverse dynamics, and the reward that EVA makes of it (arXiv:2603.17808)."""
