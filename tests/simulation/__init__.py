"""A model of the protocol: the real verbs on a store in memory, in any order that chance may find.

Drivers run as threads of which one moves at a time; they hand over at requests to the store, where
requests and answers are lost, come late, drivers are killed and machines sleep. All of it follows
from a seed. After each change of the store the promises of docs/faults.md are checked.
"""
