"""Decode untrusted videos in an isolated child process: the code of parent and child, and their messages."""
