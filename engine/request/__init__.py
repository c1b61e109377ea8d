"""A call's arguments: read, checked, and resolved against the plan.

Knows no network and no backend.
"""
