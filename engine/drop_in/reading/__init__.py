"""Read the calls of networks as named arrays: what an artifact takes, and what it returns."""
