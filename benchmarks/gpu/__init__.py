"""What a GPU will be asked for, counted on the CPU, and one script for the first hour on one."""
