"""Decode untrusted videos in a child process: the parent, the child, its isolation and their messages."""
