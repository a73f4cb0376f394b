"""`python -m fz.web`."""

from fz.web import leave, main

if __name__ == "__main__":
    leave(main())
