"""Turn untrusted videos into frames: pure sampling, decoders, and the child process that runs the decoders."""
