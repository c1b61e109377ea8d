"""`calotype doctor`: the machine, what is installed, and what works."""
