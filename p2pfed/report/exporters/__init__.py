"""Each round's figures for TensorBoard and MLflow, in a process of its own.

Off unless the site file names a place. Neither library is loaded into the daemon: what they do to
memory, to the interpreter and to the network costs no round.
"""
