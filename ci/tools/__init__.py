"""What the commands in ci/ are made of; nothing here is needed to read a notebook."""
