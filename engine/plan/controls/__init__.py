"""Networks that steer a U-Net by images of its size, as data: where T2I-Adapters add, and the check of a plan."""
