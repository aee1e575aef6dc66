"""The console: one page that shows the family as it is now, and what it is made of."""
