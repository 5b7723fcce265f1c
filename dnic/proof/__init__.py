"""The proof ladder: does a bundle compute what the model computes?"""
