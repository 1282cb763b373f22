"""What a direction does and what writes it: the model runs with one."""
