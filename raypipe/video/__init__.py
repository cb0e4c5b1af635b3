"""Untrusted video to frames: pure sampling, decoders, and the child process that they run in."""
