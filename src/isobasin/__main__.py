"""`python -m isobasin`."""

from isobasin.cli.main import run

if __name__ == "__main__":
    run()
