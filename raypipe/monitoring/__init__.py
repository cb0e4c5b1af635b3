"""What Prometheus and Grafana are given to watch jobs and the endpoint: two files, and where they lie."""
