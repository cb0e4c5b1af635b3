"""The Ray Serve application: an HTTP API for an index and its models, and a web page to try it."""
