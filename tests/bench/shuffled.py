#!/usr/bin/env python3
"""Runs a command after the machine's free hugepages were put into a random order.

How fast two cores pass a cache line to each other depends on its physical address. A back-end that
takes hugepages before its front-end does otherwise decides where the front-end's memory is, in each
run the same way. usage: shuffled.py COMMAND...
"""

import mmap
import random
import signal
import subprocess
import sys

MAP_HUGETLB = 0x40000
SIZE = 2 << 20

if len(sys.argv) < 2:
    sys.exit(__doc__)
pages = []
while True:
    try:
        page = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    except OSError:
        break
    page[0] = 1
    pages.append(page)
random.shuffle(pages)
while pages:
    pages.pop().close()

command = subprocess.Popen(sys.argv[1:])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: command.send_signal(number))
sys.exit(command.wait())
