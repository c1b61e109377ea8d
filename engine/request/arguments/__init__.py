"""The table of a call's arguments, by topic. `request.Request` joins its parts."""
