"""Linen blocks that several networks share."""
