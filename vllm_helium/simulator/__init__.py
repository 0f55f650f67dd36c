"""Engines in virtual time: the real scheduler and KV manager, a fake model, a roofline clock.

``SimulatedEngine`` steps a scheduler (stock or ours, whatever the engine configuration names)
without weights, device or hub. ``SimulatorBackend`` puts it behind the runtime's interface, and
``virtual_time.run`` executes an asyncio program in virtual time, so that the very same workflow
code runs. All of it is deterministic: equal inputs give equal figures in every process.
"""
