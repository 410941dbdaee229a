"""Moved: its functions are now `worldloop.from_pretrained` and `worldloop.save_pretrained`."""

raise ImportError("worldloop.build is no more: write `worldloop.from_pretrained` and `worldloop.save_pretrained`")
