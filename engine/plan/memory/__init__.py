"""How much memory a model needs, by its configs."""
