"""From a model's files to artefacts: sources, tracing to ONNX, checking, the store. Imports torch; the runtime does not."""
