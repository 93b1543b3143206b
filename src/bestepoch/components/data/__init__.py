"""The split on the disk, the order of an epoch and augmentation."""
