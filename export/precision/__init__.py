"""Lower precisions of a graph: fp16 and bf16, int8 and fp8, and weights alone."""
