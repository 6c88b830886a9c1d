"""What runs inside the virtual machine: agent, shims and the daemon ``moored``."""
