"""What is run: cases, contenders, presets, models, and plans."""
