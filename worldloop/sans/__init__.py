"""SANS, the success-and-near-success dataset: immutable LeRobot shards, versions, cache, clip sampling."""
