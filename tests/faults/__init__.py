"""What goes wrong, done on purpose to real processes: RELIABILITY 4.2 row by row.

`make faults [ROWS=1,4] [COUNT=20]` runs the full counts and prints one table; test_faults.py is the
short form of the same rows. Start at table.py (what a row is) and world.py (what it is done to).
"""
