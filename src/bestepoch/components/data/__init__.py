"""Load a split, order an epoch's images and augment them."""
