"""T2I-Adapters as users have them: folders, a model's own, and files in the original or in diffusers' layout."""
