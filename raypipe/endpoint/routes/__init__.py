"""The HTTP routes and the FastAPI application that serves them."""
