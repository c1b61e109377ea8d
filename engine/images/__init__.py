"""Images in and out: arrays, PNG files, tiles, edges, and CLIP's score."""
