"""Other libraries' losses by their own names and call signatures: one module per library."""
