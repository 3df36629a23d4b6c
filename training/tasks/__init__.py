"""Training tasks: CLIP, a ViT classifier, a tokenizer."""
