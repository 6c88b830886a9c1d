"""A process of its own, standard library only: answers names inside containers and holds published ports.

It outlives the daemon, so that both go on while the daemon is away.
"""
