"""Pure jitted functions: convolutions in forms that are fast on a CPU, images, augmentation, losses, metrics."""
