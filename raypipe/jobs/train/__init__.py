"""The train job: fine-tune a GPT-2 on sealed frame embeddings with Ray Train."""
