"""Pages on which things are set: the machine's resources and the daemon's configuration."""
