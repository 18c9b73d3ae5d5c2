"""What the job runs on: devices, processes and their sums, memory, the terminal."""
