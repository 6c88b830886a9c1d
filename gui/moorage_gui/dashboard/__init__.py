"""Pages on which things are seen: containers, and how live restore stands."""
