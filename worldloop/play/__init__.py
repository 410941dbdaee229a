"""Drive a robot inside a world model from a browser, beside the true simulator."""
