"""The virtual machine: its states, its domain at libvirt, its accelerator and its disk."""
