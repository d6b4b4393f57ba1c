"""Does the closed-form reduction of the irreducible loss predict the speed-up?"""
