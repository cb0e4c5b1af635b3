"""The Ray Serve application: an index and its models behind HTTP, and a page to try them."""
