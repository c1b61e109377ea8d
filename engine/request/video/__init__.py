"""The arguments of a video model: frames, motion, guidance for each frame, and chunks of the decoder."""
