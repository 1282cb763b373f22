"""What the model computed: pooled, stored, here or over Ray."""
