"""What a run would build, find and take, known before anything is built."""
