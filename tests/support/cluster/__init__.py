"""Several Ray nodes on one machine."""
