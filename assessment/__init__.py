"""After the network: numbers, pictures and pages from logits, labels and groups."""
