"""Decode untrusted videos to frames, in a child process that runs the decoders."""
