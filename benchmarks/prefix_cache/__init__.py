"""The prefix cache's own cost: lookup and insertion, memory, and the CPU time of a step."""
