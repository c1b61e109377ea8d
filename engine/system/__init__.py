"""The process and its hardware: memory, threads, forks, locks between threads, and traces."""
