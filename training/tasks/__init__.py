"""What is trained: CLIP, a ViT classifier, a tokenizer."""
