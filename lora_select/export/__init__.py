"""From whatever was trained to what plain PEFT and vLLM-style loaders take: plain LoRA of one rank, or a merged model."""
