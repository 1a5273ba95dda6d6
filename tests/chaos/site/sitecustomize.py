"""Python imports this module when a process starts: the hook is also in the processes of Ray."""

import os

if "CHAOS_PLAN" in os.environ:
    from chaos.hook import install

    install()
