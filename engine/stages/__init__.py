"""The stages of a call: text encoders, ControlNets, the U-Net's loop, and the autoencoder."""
