"""`calotype.accelerate`: the networks of a diffusers pipeline run compiled, and the pipeline stays as it is."""
