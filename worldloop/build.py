"""The name that the public functions' module had."""

raise ImportError("worldloop.build is no more: write `worldloop.from_pretrained` and `worldloop.save_pretrained`")
