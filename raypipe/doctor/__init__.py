"""What ``raypipe doctor`` checks: this machine, the nodes of a cluster, and a cluster behind a dashboard."""
