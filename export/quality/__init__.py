"""How good a plan's images are: metrics, prompts, bounds, and the evaluation of a plan."""
