"""Who holds a model's alias, and how it changes hands: promotion, a person's word, withdrawal."""
