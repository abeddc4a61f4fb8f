"""Parts of the training loop: augmentation, optimizer, losses, distributed training."""
