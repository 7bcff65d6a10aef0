"""Fashion-MNIST on non-IID shares: a plain Flower app; nothing in it knows Skerry."""
