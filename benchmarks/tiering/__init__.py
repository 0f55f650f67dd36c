"""What a host tier is worth, in virtual time."""
