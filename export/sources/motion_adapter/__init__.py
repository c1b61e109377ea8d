"""Motion modules (AnimateDiff) as users have them: folders, a model's own, and files; joined with a U-Net."""
