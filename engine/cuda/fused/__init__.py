"""Modules that call our kernels in place of diffusers' modules; `fuse` has the rules."""
