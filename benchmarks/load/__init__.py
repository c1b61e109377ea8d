"""The load test of the server: mixed traffic at 0.5, 1 and 2 times its capacity. `make load` runs it.

It drives `python -m calotype serve` in a process of its own over loopback. It knows the HTTP APIs and nothing inside.
"""
