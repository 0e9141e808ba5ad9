"""Files, errors, random numbers and checks of files made by others. Imports nothing about images or networks."""
