"""The agent's own program, which asks a TPM again at once: for tests of what it says, not of how long it takes to believe it.

Run as `python hurriedagent.py ARGUMENTS…`. An answer that nobody signs is believed after as many connections as ever.
"""

from agentd import main
from hwsec import repetition

repetition.SPAN_S = 0.0
repetition.DELAYS_S = (0.0, 0.0, 0.0, 0.0)

if __name__ == "__main__":
    main.entry()
