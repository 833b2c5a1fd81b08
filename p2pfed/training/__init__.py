"""What a site does with its own data, in a process of its own.

``frames`` and ``regions`` are what the daemon shares with that process and import no torch;
everything else here runs inside it.
"""
