"""Control-LoRAs: a ControlNet as low-rank changes of a U-Net's first half."""
