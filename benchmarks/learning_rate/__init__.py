"""How near a learning rate is to the best, and whether few rows bear it: experiments beside the sweep."""
