"""The neural networks in plain PyTorch. They work without Ray."""
