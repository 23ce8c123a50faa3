"""The functions that ``import dmx`` gives; they call the same workflows as the command line."""
