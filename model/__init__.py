"""The published package name, over ``unfuse.models.eventgpt``."""
