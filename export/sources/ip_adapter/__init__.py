"""IP-Adapters and their image encoder as parts of a source."""
