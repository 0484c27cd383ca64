"""Data sets: every series of every visit of every person, in one command.

    discovery -> sessions -> co-registration -> work on one session -> runner -> output and page

`refacecgan dataset INPUT OUTPUT` and the BIDS App `refacecgan-bids` are the ways in.
"""
