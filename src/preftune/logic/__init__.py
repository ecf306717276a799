"""A preference as a propositional formula: which answers may be valid together, and which of the two sides each case is on.

Source: Richardson, Srikumar and Sabharwal, arXiv:2412.17696. Everything here is exact arithmetic on truth tables; the loss
itself is `objectives.logic.semantic`.
"""
