"""What a call reports, and what a PNG file records about it."""
