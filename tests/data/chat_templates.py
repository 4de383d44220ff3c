"""Small chat templates that behave as those of real models do, each with what is peculiar to it, and tokenizers that have them."""

import json
import re
from pathlib import Path

from byte_tokenizer import byte_tokenizer

IM = "<|im_start|>{{ m['role'] }}\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}</call>{% endfor %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
REST = "{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"

TEMPLATES = {
    # Qwen2.5, Qwen3-2507, Qwen3-VL: tools and calls in a form of their own, earlier turns as they are.
    "im": TOOLS + "{% for m in messages %}" + IM + "{{ m['content'] }}" + CALLS + "<|im_end|>\n{% endfor %}" + ASK,
    # Llama-3, Qwen2.5-VL: no tools.
    "eot": "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    # Llama-3.1: tools in the first user turn, one call a turn.
    "one-call": "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}<|h|>assistant<|/h|>\n\n"
    "{{ {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments} | tojson }}<|eot|>{% else %}"
    "<|h|>{{ m['role'] }}<|/h|>\n\n{% if m['role'] == 'user' and tools and loop.first %}{{ tools | tojson }}\n\n{% endif %}"
    "{{ m['content'] | tojson if m['role'] == 'tool' else m['content'] }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    # Qwen3: an empty thought in the last answer, none in earlier ones.
    "empty-thought": TOOLS + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    + IM
    + REST
    + "{% set r = (m.reasoning_content or (m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '')).strip() %}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and (loop.last or r) %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}"
    + CALLS
    + "<|im_end|>\n{% endfor %}"
    + ASK,
    # Qwen3.5, Qwen3.6: the prompt opens the thought.
    "open-thought": TOOLS + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    + IM
    + REST
    + "{% if m['role'] == 'assistant' and "
    "loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ c }}"
    + CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    # Nemotron-3: the prompt opens the thought otherwise than the answer closes it.
    "joined-thought": TOOLS
    + "{% for m in messages %}"
    + IM
    + "{% if m['role'] == 'assistant' and '<think>' not in m['content'] %}"
    "<think></think>{% endif %}{{ m['content'] }}" + CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    # DeepSeek-V3: thoughts are cut, the prompt opens one, calls want arguments as text, tools are not written.
    "cut-thought": "{{ bos_token }}{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|U|>{{ m['content'] }}{% elif m['role'] == 'tool' %}<|R|>{{ m['content'] }}<|/R|>"
    "{% elif m['role'] == 'assistant' and m.tool_calls %}<|A|>{{ m['content'] }}{% for c in m.tool_calls %}<|call|>"
    "{{ c['function']['name'] + '\n' + c['function']['arguments'] }}<|/call|>{% endfor %}{{ eos_token }}"
    "{% elif m['role'] == 'assistant' %}<|A|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|A|><think>\n{% endif %}",
    # Phi-3, Phi-3.5: another end after the last turn; tool turns are not written.
    "tail": "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
    # gpt-oss: channels, another end token in earlier turns, a tool's description is read.
    "channels": "{% for t in tools or [] %}// {{ t.function.description + '\n' }}type {{ t.function.name }}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}{% for c in m.tool_calls or [] %}<|start|>assistant to={{ c.function.name }}<|message|>{{ c.function.arguments | tojson }}"
    "<|call|>{% endfor %}{% if not m.tool_calls %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endif %}{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # Gemma: no system turn, roles alternate, another end than the tokenizer's.
    "alternating": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ALTERNATE
    + "{% for m in messages %}<|turn|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|/turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>model\n{% endif %}",
    # Gemma-3, Cohere: a system turn first, then roles alternate.
    "system-in-user": "{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}{% set messages = "
    "messages[1:] if first else messages %}"
    + ALTERNATE
    + "{% for m in messages %}<|turn|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ first if loop.first }}{{ m['content'] | trim }}<|/turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>model\n{% endif %}",
    # GLM-4.5: no end after an answer.
    "endless": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% for c in m.tool_calls or [] %}\n<call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}<k>{{ k }}</k><v>{{ v }}</v>{% endfor %}</call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # Mistral-Small: ids of nine characters, tools before the last user turn, no opening of an answer.
    "ids": "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if tools and m == users[-1] %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m['content'] }}[/INST]{% elif m.tool_calls %}[CALLS]"
    "{% for c in m.tool_calls %}{% if not c.id is defined or c.id | length != 9 %}{{ raise_exception('Tool call IDs should have 9 characters') }}"
    "{% endif %}{{ c.function | tojson }}{{ c.id }}{% endfor %}{{ eos_token }}{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% elif m['role'] == 'tool' %}{% if m.tool_call_id is undefined %}{{ raise_exception('Tool results need an id') }}{% endif %}[RESULT]"
    "{{ m['content'] }} {{ m.tool_call_id }}[/RESULT]{% else %}[SYSTEM]{{ m['content'] }}[/SYSTEM]{% endif %}{% endfor %}",
    # Idefics3, SmolVLM: content is a list of parts.
    "parts": "{% for m in messages %}{{ m['role'] | capitalize }}:{% for p in m['content'] %}{% if p['type'] == 'text' %} {{ p['text'] }}"
    "{% endif %}{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    # Llava: parts, and no other roles.
    "parts-of-two": "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ p['text'] }}{% endfor %} [/INST]{% elif m['role'] == 'assistant' %} {{ m['content'][0]['text'] + eos_token }}{% elif m['role'] == 'system' %}"
    "<<SYS>>{{ m['content'][0]['text'] }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
}

# LFM2's first template writes tools and no calls; R1-Distill's neither.
TEMPLATES["tools-alone"] = TEMPLATES["im"].replace(CALLS, "")
TEMPLATES["cut-thought-alone"] = re.sub(
    r"{% elif m\['role'\] == 'assistant' and m.tool_calls %}.*?{% endfor %}{{ eos_token }}",
    "",
    TEMPLATES["cut-thought"],
    flags=re.S,
)

MODELS = {
    "im": "Qwen2.5, Qwen3-2507, Qwen3-VL, later LFM2",
    "tools-alone": "first LFM2",
    "eot": "Llama-3, Qwen2.5-VL",
    "one-call": "Llama-3.1, 3.2",
    "empty-thought": "Qwen3",
    "open-thought": "Qwen3.5, Qwen3.6",
    "joined-thought": "Nemotron-3",
    "cut-thought": "DeepSeek-V3",
    "cut-thought-alone": "R1-Distill",
    "tail": "Phi-3, Phi-3.5",
    "channels": "gpt-oss",
    "alternating": "Gemma",
    "system-in-user": "Gemma-3, Cohere",
    "endless": "GLM-4.5",
    "ids": "Mistral-Small",
    "parts": "Idefics3, SmolVLM",
    "parts-of-two": "Llava",
}
"""Template -> the models whose templates behave so."""

ENDS = {"channels": "<|return|>", "cut-thought": "<|endoftext|>", "cut-thought-alone": "<|endoftext|>"}
MORE_ENDS = {"channels": "<|call|>"}
"""End tokens that only the model's generation_config.json names."""


def tokenizer_of(name: str, folder: Path):
    """The byte tokenizer with a template, whose marks are special tokens and whose end tokens are the model's."""
    tokenizer = byte_tokenizer()
    template = TEMPLATES[name]
    marks = sorted({*re.findall(r"<\|[^<>{}'\"|]+\|>", template), *re.findall(r"\[/?[A-Z]+\]", template)})
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [mark for mark in marks if mark not in tokenizer.get_vocab()]}
    )
    tokenizer.chat_template = template
    tokenizer.eos_token = ENDS.get(name, "<|im_end|>")
    if name in MORE_ENDS:
        named = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(MORE_ENDS[name])]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        tokenizer.name_or_path = str(folder)
    return tokenizer
