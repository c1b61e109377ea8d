"""One command that tells everything about a GPU: `python -m calotype.benchmarks.gpu_check --deadline 570 --out DIR`.

It needs the source tree, torch, triton, transformers and diffusers, and no installation of Calotype.
"""
