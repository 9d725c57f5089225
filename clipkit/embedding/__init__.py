"""Embeddings on disk and what is found in them: shards, folders or a CSV to ``.npy`` and parquet, and search over those."""
