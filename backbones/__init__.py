"""Backbones by name: classifiers of torchvision, and of timm as timm/NAME."""
