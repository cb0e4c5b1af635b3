"""The train job: fine-tune GPT-2 on sealed frame embeddings with Ray Train."""
