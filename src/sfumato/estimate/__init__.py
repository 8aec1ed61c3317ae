"""What a training and an image cost: operations, memory, time; before it is paid for."""
