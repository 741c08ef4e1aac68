"""Where workers are started: in this process, or as Ray actors on this machine or a cluster.

Its modules load torch or ray, which takes seconds, so they are imported where they are used.
"""
