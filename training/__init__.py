"""The parts of the training loop: augmentation, optimizer, losses, several processes."""
