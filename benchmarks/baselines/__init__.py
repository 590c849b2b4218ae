"""What our code is compared with."""
