"""The neural networks, in plain PyTorch; they work without Ray."""
