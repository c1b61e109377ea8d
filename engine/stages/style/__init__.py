"""Style Aligned: a given image as one more row of each batch of the U-Net, with its noise by DDIM inversion."""
