"""`python -m server.fronts FD`, started by the engine process only."""

import sys

from server.fronts.front import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
