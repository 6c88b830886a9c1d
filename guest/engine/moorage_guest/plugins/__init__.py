"""Plugins that somebody else runs: programs that answer by HTTP where the engine asks for a driver or for leave."""
