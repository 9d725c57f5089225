"""Sources of plain WebDataset tars to batches: index, plan, decode, augment, load, account."""
