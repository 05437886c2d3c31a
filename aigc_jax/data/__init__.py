"""Host side: sources, transforms, addressed batches."""
