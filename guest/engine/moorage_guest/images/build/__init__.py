"""The classic builder: Dockerfile language, build context, cache and steps."""
