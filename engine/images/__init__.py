"""Images: arrays, PNG files, VAE tiles, edges for ControlNets, and CLIP scores."""
