"""`calotype doctor`: report on the machine, the installed libraries and the backends that work."""
