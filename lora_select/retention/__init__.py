"""What an adapter destroyed of the base model's knowledge, taken out of it again: second moments, a filter, a stopping rule, and the evidence."""
