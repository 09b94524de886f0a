"""Where an optimizer's state is stored, and what ``optimizer.state`` shows of it."""
