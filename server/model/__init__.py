"""Stage 5: compute a batch.

Shape letters, everywhere in this package:

    N samples   T packed tokens   S slots   L layers   H hidden size   R bottleneck width   C classes
"""
