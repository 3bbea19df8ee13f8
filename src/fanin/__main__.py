"""`python -m fanin`, for when the script `fanin` is not on the path."""

from fanin.cli import main

if __name__ == "__main__":
    main()
