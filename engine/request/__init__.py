"""Parsing and validation of a call's arguments. Does not know networks or backends."""
