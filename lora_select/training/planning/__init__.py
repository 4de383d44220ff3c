"""What a training will take: ranks, ZeRO stage, batch, memory and time."""
