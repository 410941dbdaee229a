"""A package, so that processes which tests start find their modules: draccus installs another one called `tests`."""
