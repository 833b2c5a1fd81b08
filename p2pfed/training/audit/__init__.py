"""What a neighbour that holds this site's deltas can learn of its records, measured.

Run in a process of its own by ``p2pfed privacy-audit``; topology/PRIVACY_AUDIT.md is its page.
"""
