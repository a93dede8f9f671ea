"""What a policy folder means, and how its files are read: every fault with its line, and values believed once."""
