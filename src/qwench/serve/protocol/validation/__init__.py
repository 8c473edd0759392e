"""JSON as clients write it, read into the classes of bodies.

What is no field of its class goes by field_table.py: it is another name or form of a field, of no consequence, or left
aside and named.
"""
