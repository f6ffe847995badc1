"""Everything that imports Ray; nothing here knows about gradients."""
