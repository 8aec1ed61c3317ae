"""What a training and a picture cost: operations, memory, time; before it is paid for."""
