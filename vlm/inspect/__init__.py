"""Attention maps, rollout and relevance as arrays and figures."""
