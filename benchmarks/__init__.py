"""The suite that compares backends and peers. So far it can only say how near two pictures are (`quality`)."""
