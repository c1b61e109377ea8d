"""The stages of a call: text encoders, ControlNets, the denoising loop of the U-Net, and the VAE."""
