"""HAProxy in front of Ray Serve: start it, and rewrite the configuration that Serve writes for it."""
