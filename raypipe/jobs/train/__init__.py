"""Fine-tune GPT-2 over sealed frame embeddings on Ray Train."""
