"""A policy that plans a video and executes it by inverse dynamics."""
