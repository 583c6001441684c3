"""What the chat templates of LMs that can think write of plain conversations, in as little Jinja as that takes."""

QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen/Qwen3-0.6B: an empty thought before the last answer, none before the others."""

SMOLLM3 = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}"
    "{% set begin = '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') %}"
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
    "Reasoning Mode: {{ '/think' if thinks else '/no_think' }}\n\n## Custom Instructions\n\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n"
    "{% for m in messages %}{{ begin if m.role == 'assistant' else '<|im_start|>user\n' }}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ begin }}{% endif %}"
)
"""HuggingFaceTB/SmolLM3-3B, asked not to think: today's date, and an empty thought before every answer."""
