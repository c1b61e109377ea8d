"""The regions of a call: areas of the image with a prompt of their own."""
