"""The parts of ``raypipe demo``: the clips, a local S3 server, and the sequence of commands."""
