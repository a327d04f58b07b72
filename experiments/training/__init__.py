"""From settings to steps: optimizers behind one interface, batches, devices, and the loop that runs them in queues."""
