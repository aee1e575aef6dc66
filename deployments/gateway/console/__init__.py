"""The console: the family as it is now and what it is made of; a studio for videos; accounts, for operators."""
