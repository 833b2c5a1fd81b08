"""A federation under virtual time: the daemon's own core, driven by a simulated network.

``federation`` puts it together; ``world`` is the clock, ``network`` the links, ``peer`` a
site, ``behaviour`` what hostile sites do, ``faults`` what goes wrong, ``checkers`` what must
hold. ``tasks`` and ``learner`` are what the sites learn, ``run`` and ``report`` what the
command needs.
"""
