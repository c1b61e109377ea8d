"""OpenVINO on the CPU: compiled shapes, rewritten graphs, and denoising sessions."""
