"""The model card of a federation at one site: what ran, who took part, how good it is.

Nothing here reads a file or knows of a running daemon; ``p2pfed.daemon.reporting`` gathers what a
report is made of, and ``topology/REPORT.md`` says how to read one.
"""
