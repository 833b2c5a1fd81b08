"""Demonstrations: real federations of real daemons on one machine."""
