"""Decode untrusted videos in a child process: its parent, the child, its isolation, and what the two say."""
