"""EventGPT for Hugging Face; importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from unfuse.models.eventgpt.configuration_eventgpt import EventChatConfig
from unfuse.models.eventgpt.modeling_eventgpt import EventGPTForConditionalGeneration
from unfuse.models.eventgpt.processing_eventgpt import EventGPTProcessor
from unfuse.models.eventgpt.published import EventChatModel

AutoConfig.register(EventChatConfig.model_type, EventChatConfig, exist_ok=True)
AutoProcessor.register(EventChatConfig, EventGPTProcessor, exist_ok=True)
AutoModelForImageTextToText.register(EventChatConfig, EventGPTForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(EventChatConfig, EventChatModel, exist_ok=True)

__all__ = ["EventChatConfig", "EventChatModel", "EventGPTForConditionalGeneration", "EventGPTProcessor"]
