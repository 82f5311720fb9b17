"""What vLLM's processes run first, in place of the main module of the program that started them.

Their imports take seconds, in which they would not notice that their owner is gone; and they read
their settings only after the first ones, whose warnings nobody could act on. What a worker frees
would stay with it, in ever more pieces: on CPU, oneDNN keeps what it made for each number of tokens
in a step, between arrays as large as that number. This module must not import vLLM or numba: see
``start``.
"""

import logging

from bytelm import memory
from bytelm.settings import InheritedLogging
from bytelm.vllm import watchdog

watchdog.install()
memory.give_back_regularly()
logging.getLogger("vllm").setLevel(InheritedLogging().level)
