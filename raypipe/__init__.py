"""raypipe: a bucket of videos becomes embeddings, a classifier and recommendations, on Ray.

Importing this package does nothing else: no Ray, no torch, no network.
"""

__version__ = "0.1.0"
