"""How long rounds take on clusters that are not at hand."""
