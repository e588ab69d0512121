"""The seed's import path: ``from model.EventChatModel import EventChatModel``."""

from unfuse.models.eventgpt import EventChatConfig, EventChatModel

__all__ = ["EventChatConfig", "EventChatModel"]
