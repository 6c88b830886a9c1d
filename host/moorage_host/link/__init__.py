"""The way into the guest: one SSH connection, and what goes through it."""
