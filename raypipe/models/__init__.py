"""The networks: plain PyTorch, usable without Ray."""
