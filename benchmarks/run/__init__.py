"""How a case is run: contenders in their processes, taking turns."""
