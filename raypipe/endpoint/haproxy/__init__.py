"""HAProxy in front of Ray Serve: how it is started, and what is changed in the configuration that Serve writes."""
