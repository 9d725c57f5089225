"""clipkit: CLIP-style contrastive pretraining."""
