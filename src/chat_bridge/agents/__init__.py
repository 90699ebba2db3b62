"""What answers: one module for each kind of agent, all with the contract of `contract.py`."""
