"""What calls cost: tokens counted off their path, and budgets that processes share."""
