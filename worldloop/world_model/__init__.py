"""The action-conditioned video world model: codec, denoisers, sampler, heads, self-rollout training."""
