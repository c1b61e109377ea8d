"""What the steps of a build share: child processes, progress, and the versions of tools."""
