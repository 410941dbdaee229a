"""HarmoWAM (arXiv:2605.10942): a predictive and a reactive expert over one planner, with a gate between them."""
